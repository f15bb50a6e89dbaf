#@script(label="Localize without Python", description="Runs an exported localization model on a movie with ONNX Runtime inside Fiji", headless=true)
#@ File (label="Raw movie (TIFF)", style="open", persist=false) movie
#@ File (label="Package: folder, zip, or its weights.onnx", style="open", persist=false) model
#@ File (label="ThunderSTORM CSV to write", style="save", persist=false) csv
#@ Double (label="Least probability (0: the model's)", style="format:0.####", value=0, min=0, max=0.99, persist=false) threshold
#@ Double (label="Camera offset [ADU] (-1: the package's)", style="format:0.####", value=-1, persist=false) cameraoffset
#@ Double (label="Photo-electrons per ADU (-1: the package's)", style="format:0.####", value=-1, persist=false) electronsperadu
#@ Boolean (label="Replace the file if it exists", value=false, persist=false) overwrite
#@output Integer localizations
#@output String csvpath

// Tiles, borders and decoding are those of smlm_bridge's localize.py; the tests compare both. Groovy 2.4 and later.
import groovy.json.JsonSlurper
import groovy.transform.CompileStatic
import ij.IJ
import ij.ImagePlus
import ij.process.ImageProcessor
import java.nio.FloatBuffer
import java.nio.file.Files
import java.util.zip.ZipFile

/** Part of one axis: what a tile answers for (own) and what it sees (seen), from start to stop. */
@CompileStatic
class Span {
    int ownStart, ownStop, seenStart, seenStop

    /** Every tile sees as far beyond its own edge as the network looks, on the network's own grid. */
    static List<Span> cut(int length, int core, int halo) {
        List<Span> spans = new ArrayList<Span>()
        if (length <= core + 2 * halo) {
            spans.add(new Span(ownStart: 0, ownStop: length, seenStart: 0, seenStop: length))
            return spans
        }
        for (int start = 0; start < length; start += core) {
            int stop = Math.min(length, start + core)
            spans.add(new Span(ownStart: start, ownStop: stop, seenStart: Math.max(0, start - halo),
                seenStop: Math.min(length, stop + halo)))
        }
        return spans
    }
}

/** The loops over pixels. */
@CompileStatic
class Pixels {
    /** Photo-electrons of a plane, padded to the network's grid by repeating its last row and column. */
    static float[] photons(ImageProcessor plane, int width, int height, float gain, float offset, float signed) {
        int w = plane.getWidth(), h = plane.getHeight()
        float[] out = new float[width * height]
        for (int y = 0; y < height; y++) {
            for (int x = 0; x < width; x++) {
                float counts = plane.getf(Math.min(x, w - 1), Math.min(y, h - 1)) - signed
                out[y * width + x] = gain * counts + offset
            }
        }
        return out
    }

    static boolean finite(float[] values) {
        for (float value : values) if (Float.isNaN(value) || Float.isInfinite(value)) return false
        return true
    }

    static void cutOut(float[] plane, int width, Span rows, Span columns, FloatBuffer tile) {
        int n = columns.seenStop - columns.seenStart
        for (int y = rows.seenStart; y < rows.seenStop; y++) tile.put(plane, y * width + columns.seenStart, n)
    }

    /** Copy a tile's own part from maps (10, seen rows, seen columns) into the planes of a frame. */
    static void putBack(float[] out, int first, Span rows, Span columns, float[][] maps, int width, int height) {
        int seenWidth = columns.seenStop - columns.seenStart
        int area = (rows.seenStop - rows.seenStart) * seenWidth
        int n = Math.min(columns.ownStop, width) - columns.ownStart
        for (int i = 0; i < maps.length; i++) {
            for (int y = rows.ownStart; y < Math.min(rows.ownStop, height); y++) {
                int from = first + i * area + (y - rows.seenStart) * seenWidth + columns.ownStart - columns.seenStart
                if (n > 0) System.arraycopy(out, from, maps[i], y * width + columns.ownStart, n)
            }
        }
    }
}

/** The classes of the decoder, which is the neighbouring script: never a file out of the package. */
def decoderClasses() {
    def name = 'Decode_maps_to_ThunderSTORM.groovy'
    def folders = [new File(IJ.getDirectory('imagej') ?: '.', 'scripts/Plugins/SMLM Bridge')]
    if (binding.hasVariable('javax.script.filename')) {
        folders.add(0, new File(binding.getVariable('javax.script.filename').toString()).absoluteFile.parentFile)
    }
    def file = folders.collect { new File(it, name) }.find { it.isFile() }
    if (file == null) {
        throw new FileNotFoundException("${name} is missing in ${folders.join(' and ')}. It lies beside this script: " +
            "run 'smlm-bridge fiji install' again.")
    }
    def loader = new GroovyClassLoader(getClass().classLoader)
    loader.parseClass(file.getText('UTF-8').replaceAll(/(?m)^#@.*$/, ''), name)
    return [maps: loader.loadClass('SmlmMaps'), table: loader.loadClass('SmlmTable')]
}

/** A class loader that has ONNX Runtime: Fiji's own jars, or the engine that DeepImageJ has downloaded. */
def runtimeLoader() {
    def here = Thread.currentThread().contextClassLoader ?: getClass().classLoader
    for (loader in [here, getClass().classLoader, IJ.getClassLoader()]) {
        try {
            Class.forName('ai.onnxruntime.OrtEnvironment', false, loader)
            return loader
        } catch (ClassNotFoundException ignored) { }
    }
    def jars = []
    new File(IJ.getDirectory('imagej') ?: '.', 'engines').listFiles()?.findAll { it.isDirectory() }?.each { folder ->
        jars.addAll(folder.listFiles().findAll { it.name ==~ /onnxruntime-[\d.]+\.jar/ })
    }
    if (jars.isEmpty()) {
        throw new ClassNotFoundException('ONNX Runtime for Java is missing. Put onnxruntime-1.13.1.jar or a newer one ' +
            '(Maven Central, com.microsoft.onnxruntime:onnxruntime) into the folder jars of Fiji and start it again, or ' +
            'run any ONNX model in DeepImageJ once, which downloads its engine.')
    }
    return new URLClassLoader([jars.max { it.name.findAll(/\d+/).inject(0L) { sum, part -> 1000 * sum + part.toLong() } }.toURI().toURL()] as URL[], here)
}

/** The weights of a package: a folder, an archive or the file itself. */
byte[] weightsOf(File place) {
    long largest = 512_000_000L
    def tooLarge = { long size -> if (size > largest) throw new IOException("${place} is larger than 512 MB; no model of ours is.") }
    File file = place.isDirectory() ? new File(place, 'weights.onnx') : place
    if (!file.isFile()) throw new FileNotFoundException("There is no model ${file}.")
    if (!file.name.toLowerCase(Locale.ROOT).endsWith('.zip')) {
        tooLarge(file.length())
        return Files.readAllBytes(file.toPath())
    }
    def archive = new ZipFile(file)
    try {
        def entry = archive.getEntry('weights.onnx')
        if (entry == null) throw new IOException("${file} has no weights.onnx: it is no package of 'smlm-bridge export'.")
        def stream = new DataInputStream(archive.getInputStream(entry))
        tooLarge(entry.size)
        byte[] bytes = new byte[(int) entry.size]
        stream.readFully(bytes)
        return bytes
    } finally {
        archive.close()
    }
}

/** What the package says beside the graph, checked. */
def settingsOf(session, File place) {
    def text = session.metadata.customMetadata['smlm_bridge.package']
    if (text == null || session.inputNames as List != ['frames'] || session.outputNames as List != ['maps']) {
        throw new IllegalArgumentException("${place} is no package of 'smlm-bridge export MODEL --deepimagej'; export the model.")
    }
    def settings = new JsonSlurper().parseText(text)
    if (settings.format != 'smlm_bridge package' || settings.version != 1) {
        throw new IllegalArgumentException("${place} is '${settings.format}' version ${settings.version}; this script reads version 1.")
    }
    ['pixel_nm', 'gain', 'offset', 'threshold', 'channels', 'size_step', 'reach_px'].each {
        if (!(settings[it] instanceof Number)) throw new IllegalArgumentException("${place}: '${it}' is no number.")
    }
    if (settings.size_step < 1 || settings.reach_px < 0 || settings.channels < 1 || !(settings.pixel_nm > 0)) {
        throw new IllegalArgumentException("${place}: the sizes in the package are no sizes of a network.")
    }
    if (settings.field_scale != null && !(settings.field_scale instanceof Number && settings.field_scale > 0)) {
        throw new IllegalArgumentException("${place}: 'field_scale' is no scale.")
    }
    return settings
}

/** Emitters with x and y where they stand: they are seen field_scale times as far from the field's centre. */
def placed(List<double[]> emitters, settings) {
    if (settings.field_scale == null) return emitters
    double scale = settings.field_scale as double
    def centre = settings.field_centre_nm.collect { it as double }
    emitters.each { double[] one ->
        for (int axis = 0; axis < 2; axis++) one[axis] = centre[axis] + (one[axis] - centre[axis]) / scale
    }
    return emitters
}

/** The movie, read plane by plane from the disk where ImageJ can. */
def openMovie(File file) {
    IJ.redirectErrorMessages(true)
    ImagePlus image = file.name ==~ /(?i).*\.tiff?/ ? IJ.openVirtual(file.path) : null
    image = image ?: IJ.openImage(file.path)
    if (image == null) {
        throw new IOException("ImageJ cannot open ${file}. It reads TIFF up to 4 GB, and ImageJ's own above; convert it first.")
    }
    if (image.type == ImagePlus.COLOR_RGB || image.type == ImagePlus.COLOR_256) {
        throw new IllegalArgumentException("${file} is a colour picture; raw camera frames are grey.")
    }
    return image
}

/** Plane indices of each frame: [frame][channel]. */
def planesOf(ImagePlus image, int channels) {
    def (c, z, t) = [image.nChannels, image.nSlices, image.nFrames]
    if (channels == 1 && [c, z, t].count { it > 1 } <= 1) return (1..image.stackSize).collect { [it] }
    if (c != channels || (z > 1 && t > 1)) {
        throw new IllegalArgumentException("The movie has ${c} channels, ${z} slices and ${t} time points; the model takes " +
            "${channels} channel(s) and one row of frames.")
    }
    return (1..Math.max(z, t)).collect { k -> (1..c).collect { image.getStackIndex(it, z > 1 ? k : 1, t > 1 ? k : 1) } }
}

def stopIfCancelled() {
    if (IJ.escapePressed()) throw new InterruptedException('Cancelled; no table was written.')
}

/** Maps [frame][map][pixel] of padded photo-electrons [frame][channel][pixel]. */
def runTiled(runtime, List photons, int[] size, int[] padded, settings) {
    int step = settings.size_step
    int halo = (int) Math.ceil(settings.reach_px / (double) step) * step
    int core = Math.max(step, 512.intdiv(step) * step)
    float[][][] maps = new float[photons.size()][settings.maps.size()][size[0] * size[1]]
    for (rows in Span.cut(padded[1], core, halo)) {
        for (columns in Span.cut(padded[0], core, halo)) {
            stopIfCancelled()
            int w = columns.seenStop - columns.seenStart, h = rows.seenStop - rows.seenStart
            def tile = FloatBuffer.allocate(photons.size() * (int) settings.channels * w * h)
            photons.each { frame -> frame.each { Pixels.cutOut((float[]) it, padded[0], rows, columns, tile) } }
            tile.rewind()
            def tensor = runtime.tensors.createTensor(runtime.environment, tile,
                [photons.size(), settings.channels, h, w] as long[])
            def result = runtime.session.run([frames: tensor])
            try {
                float[] out = new float[photons.size() * maps[0].length * w * h]
                result.get(0).floatBuffer.get(out)
                for (int i = 0; i < maps.length; i++) {
                    Pixels.putBack(out, i * maps[0].length * w * h, rows, columns, maps[i], size[0], size[1])
                }
            } finally {
                result.close()
                tensor.close()
            }
        }
    }
    return maps
}

def localizeMovie(runtime, settings, File source, File target, double least, double[] scale, boolean replace) {
    def decoder = decoderClasses()
    if (settings.maps != decoder.maps.NAMES) throw new IllegalArgumentException('The model returns other maps than the decoder reads.')
    ImagePlus image = openMovie(source)
    def planes = planesOf(image, (int) settings.channels)
    int step = settings.size_step
    int[] size = [image.width, image.height]
    int[] padded = size.collect { ((int) Math.ceil(it / (double) step)) * step } as int[]
    // Bounds the memory: about 400 000 pixels at once, a frame at least.
    int block = Math.max(1, 400_000.intdiv(padded[0] * padded[1]))
    float signed = image.calibration.isSigned16Bit() ? 32768f : 0f
    int failed = 0
    def table = decoder.table.newInstance(target, replace)
    try {
        for (int start = 0; start < planes.size(); start += block) {
            def here = planes.subList(start, Math.min(planes.size(), start + block))
            def photons = here.collect { frame ->
                frame.collect { Pixels.photons(image.getStack().getProcessor(it), padded[0], padded[1], (float) scale[0], (float) scale[1], signed) }
            }
            def good = (0..<photons.size()).findAll { i -> photons[i].every { Pixels.finite(it) } }
            failed += photons.size() - good.size()
            if (good) {
                def maps = runTiled(runtime, good.collect { photons[it] }, size, padded, settings)
                good.eachWithIndex { i, k ->
                    def found = decoder.maps.decode(maps[k], size[0], size[1], (double) settings.pixel_nm, least)
                    table.add(start + i + 1, placed(found, settings))
                }
            }
            IJ.showProgress(Math.min(planes.size(), start + block), planes.size())
        }
        stopIfCancelled()
        table.commit()
    } finally {
        table.close()
        IJ.showProgress(1.0d)
        image.close()
    }
    if (failed > 0) IJ.log("SMLM Bridge: ${failed} frame(s) of ${source.name} have values that are not finite and were left out.")
    return table.rows
}

def localizeFile(File source, File place, File target, double least, double offset, double perCount, boolean replace) {
    IJ.resetEscape()
    byte[] weights = weightsOf(place)
    def loader = runtimeLoader()
    def environment = loader.loadClass('ai.onnxruntime.OrtEnvironment').getEnvironment()
    def session = environment.createSession(weights, loader.loadClass('ai.onnxruntime.OrtSession$SessionOptions').newInstance())
    try {
        def settings = settingsOf(session, place)
        double gain = perCount > 0 ? perCount : (double) settings.gain
        double zero = offset >= 0 ? offset : -settings.offset / (double) settings.gain
        def runtime = [environment: environment, session: session, tensors: loader.loadClass('ai.onnxruntime.OnnxTensor')]
        return localizeMovie(runtime, settings, source, target, least > 0 ? least : (double) settings.threshold,
            [gain, 0d - zero * gain] as double[], replace)
    } finally {
        session.close()
    }
}

localizations = localizeFile(movie, model, csv, threshold, cameraoffset, electronsperadu, overwrite)
csvpath = csv.absolutePath
IJ.showStatus("${localizations} localizations in ${csv.name}")
