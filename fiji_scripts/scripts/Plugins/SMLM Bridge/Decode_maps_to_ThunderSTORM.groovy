#@script(label="Decode maps to ThunderSTORM", description="Turns the maps of a localization model, as DeepImageJ shows them, into a ThunderSTORM table", headless=true)
#@ ImagePlus (label="Maps (10 channels, one time point a frame)") maps
#@ File (label="ThunderSTORM CSV to write", style="save", persist=false) csv
#@ Double (label="Camera pixel [nm]", style="format:0.####", value=100, min=1, persist=false) pixelnm
#@ Double (label="Least probability", style="format:0.####", value=0.5, min=0.01, max=0.99, persist=false) threshold
#@ Boolean (label="Replace the file if it exists", value=false, persist=false) overwrite
#@output Integer localizations

// The same rules as smlm_bridge's networks/decode.py; the tests compare both. Groovy 2.4 and later.
import groovy.transform.CompileStatic
import ij.IJ
import ij.ImagePlus
import java.nio.file.Files
import java.nio.file.StandardCopyOption
import java.text.DecimalFormat
import java.text.DecimalFormatSymbols

/** Decodes the ten maps of one frame. */
@CompileStatic
class SmlmMaps {
    static final List<String> NAMES = ['probability', 'dx_nm', 'dy_nm', 'z_nm', 'photons', 'sigma_x_nm',
        'sigma_y_nm', 'sigma_z_nm', 'sigma_photons', 'background'].asImmutable()
    static final int P = 0, DX = 1, DY = 2, SX = 5, SY = 6
    /** Share of the threshold that a peak needs on its own: nine pixels add up. */
    static final double LEAST_PEAK = 0.1d

    /**
     * Emitters of one frame, by row and column: each {x, y, the maps from z on, probability}.
     *
     * @param maps ten planes of width * height values, in the order of NAMES
     */
    static List<double[]> decode(float[][] maps, int width, int height, double pixelNm, double threshold) {
        List<double[]> found = new ArrayList<double[]>()
        float[] p = maps[P]
        // In single precision, like the comparison in numpy.
        float least = (float) (LEAST_PEAK * threshold)
        for (int row = 0; row < height; row++) {
            for (int column = 0; column < width; column++) {
                float peak = p[row * width + column]
                if (!(peak > least) || !isPeak(p, width, height, row, column)) continue
                double summed = sum(p, width, height, row, column)
                if (!(summed > threshold)) continue
                double[] values = average(maps, width, height, row, column, pixelNm)
                values[values.length - 1] = Math.min(summed, 1.0d)
                if (allFinite(values)) found.add(values)
            }
        }
        return found
    }

    /** Above all neighbours earlier in reading order, and not below the later ones: equal ones count once. */
    static boolean isPeak(float[] p, int width, int height, int row, int column) {
        float peak = p[row * width + column]
        for (int dy = -1; dy <= 1; dy++) {
            for (int dx = -1; dx <= 1; dx++) {
                int y = row + dy, x = column + dx
                if ((dx == 0 && dy == 0) || y < 0 || y >= height || x < 0 || x >= width) continue
                float other = p[y * width + x]
                boolean earlier = dy < 0 || (dy == 0 && dx < 0)
                if (earlier ? !(peak > other) : !(peak >= other)) return false
            }
        }
        return true
    }

    static double sum(float[] p, int width, int height, int row, int column) {
        double total = 0d
        for (int y = Math.max(0, row - 1); y <= Math.min(height - 1, row + 1); y++) {
            for (int x = Math.max(0, column - 1); x <= Math.min(width - 1, column + 1); x++) {
                total += (double) p[y * width + x]
            }
        }
        return total
    }

    /** Mean over 3 x 3 pixels, weighted by probability and lateral precision. */
    static double[] average(float[][] maps, int width, int height, int row, int column, double pixelNm) {
        double[] values = new double[NAMES.size()]
        double weights = 0d
        for (int y = Math.max(0, row - 1); y <= Math.min(height - 1, row + 1); y++) {
            for (int x = Math.max(0, column - 1); x <= Math.min(width - 1, column + 1); x++) {
                int k = y * width + x
                double weight = (double) maps[P][k] / ((double) maps[SX][k] * (double) maps[SY][k])
                weights += weight
                values[0] += weight * ((double) maps[DX][k] + (x + 0.5d) * pixelNm)
                values[1] += weight * ((double) maps[DY][k] + (y + 0.5d) * pixelNm)
                for (int i = DY + 1; i < NAMES.size(); i++) values[i - 1] += weight * (double) maps[i][k]
            }
        }
        for (int i = 0; i < values.length; i++) values[i] = values[i] / weights
        return values
    }

    static boolean allFinite(double[] values) {
        for (double value : values) if (Double.isNaN(value) || Double.isInfinite(value)) return false
        return true
    }
}

/** A ThunderSTORM table that is there as a whole or not at all: a hidden file until commit() renames it. */
@CompileStatic
class SmlmTable implements Closeable {
    static final List<String> COLUMNS = ['id', 'frame', 'x [nm]', 'y [nm]', 'z [nm]', 'sigma1 [nm]', 'sigma2 [nm]',
        'intensity [photon]', 'offset [photon]', 'bkgstd [photon]', 'uncertainty_xy [nm]', 'uncertainty_z [nm]',
        'uncertainty_x [nm]', 'uncertainty_y [nm]', 'uncertainty_intensity [photon]', 'prob'].asImmutable()
    /** ThunderSTORM and Picasso open no 3-D table without widths; this one is a placeholder. */
    static final double PSF_SIGMA_NM = 130d
    final File target
    final boolean overwrite
    int rows = 0
    private final File temporary
    private final Writer writer
    private final DecimalFormat format = new DecimalFormat('0.###', new DecimalFormatSymbols(Locale.ROOT))

    SmlmTable(File target, boolean overwrite) {
        this.target = target.getAbsoluteFile()
        this.overwrite = overwrite
        refuseExisting()
        File folder = this.target.getParentFile()
        if (!folder.isDirectory()) throw new IOException('The folder ' + folder + ' does not exist; make it first.')
        temporary = new File(folder, '.' + Long.toHexString(System.nanoTime()) + '~' + this.target.getName())
        writer = new BufferedWriter(new OutputStreamWriter(new FileOutputStream(temporary), 'UTF-8'))
        writer.write('"' + COLUMNS.join('","') + '"\n')
    }

    /** Add the emitters of a frame that counts from 1. */
    void add(int frame, List<double[]> emitters) {
        for (double[] e : emitters) {
            rows++
            writer.write(rows + ',' + frame)
            double sx = e[4], sy = e[5]
            double[] values = [e[0], e[1], e[2], PSF_SIGMA_NM, PSF_SIGMA_NM, e[3], e[8], Math.sqrt(Math.max(e[8], 0d)),
                Math.sqrt((sx * sx + sy * sy) / 2d), e[6], sx, sy, e[7], e[9]] as double[]
            for (double value : values) {
                // + 0 turns -0, which would be written as it is, into 0.
                writer.write(',' + format.format(Math.rint(value * 1000d) / 1000d + 0d))
            }
            writer.write('\n')
        }
    }

    void commit() {
        writer.close()
        refuseExisting()
        Files.move(temporary.toPath(), target.toPath(), StandardCopyOption.REPLACE_EXISTING)
    }

    /** Without commit() before, nothing is left behind. */
    void close() {
        writer.close()
        Files.deleteIfExists(temporary.toPath())
    }

    private void refuseExisting() {
        if (target.isDirectory()) throw new IOException(target.toString() + ' is a folder; give a file name.')
        if (target.exists() && !overwrite) {
            throw new IOException(target.toString() + ' exists; choose another name, or tick "Replace the file".')
        }
    }
}

/** Index of a frame's first plane, and how many frames: frames are time points, or slices where there is no time. */
def framesOf(ImagePlus image) {
    if (image.nSlices > 1 && image.nFrames > 1) {
        throw new IllegalArgumentException("${image.title} has slices and time points; give one of them.")
    }
    return Math.max(image.nSlices, image.nFrames)
}

def decodeImage(ImagePlus image, File target, double pixel, double least, boolean replace) {
    if (image.bitDepth != 32 || image.nChannels != SmlmMaps.NAMES.size()) {
        throw new IllegalArgumentException("${image.title} has ${image.nChannels} channel(s) of ${image.bitDepth} bit. " +
            "The maps of a localization model are ${SmlmMaps.NAMES.size()} channels of 32 bit: ${SmlmMaps.NAMES.join(', ')}.")
    }
    int count = framesOf(image)
    boolean inTime = image.nFrames > 1
    IJ.resetEscape()
    def table = new SmlmTable(target, replace)
    try {
        for (int frame = 1; frame <= count; frame++) {
            if (IJ.escapePressed()) throw new InterruptedException('Cancelled; no table was written.')
            float[][] planes = new float[SmlmMaps.NAMES.size()][]
            for (int c = 1; c <= planes.length; c++) {
                int index = image.getStackIndex(c, inTime ? 1 : frame, inTime ? frame : 1)
                planes[c - 1] = (float[]) image.getStack().getProcessor(index).convertToFloat().pixels
            }
            table.add(frame, SmlmMaps.decode(planes, image.width, image.height, pixel, least))
            IJ.showProgress(frame, count)
        }
        table.commit()
    } finally {
        table.close()
        IJ.showProgress(1.0d)
    }
    return table.rows
}

localizations = decodeImage(maps, csv, pixelnm, threshold, overwrite)
IJ.showStatus("${localizations} localizations in ${csv.name}")
