#@script(label="Localize with Python", description="Localizes a movie with smlm_bridge and writes a ThunderSTORM table", headless=true)
#@ File (label="Raw movie (empty: the active image)", style="open", required=false, persist=false) movie
#@ File (label="Model (.onnx) or the name of a shipped one", style="open", persist=false) model
#@ File (label="ThunderSTORM CSV to write", style="save", persist=false) csv
#@ Double (label="Least probability (0: the model's)", style="format:0.####", value=0, min=0, max=0.99, persist=false) threshold
#@ Double (label="Camera offset [ADU] (-1: the model's)", style="format:0.####", value=-1, persist=false) cameraoffset
#@ Double (label="Photo-electrons per ADU (-1: the model's)", style="format:0.####", value=-1, persist=false) electronsperadu
#@ String (label="Frames A:B, from 1 (empty: all)", value="", required=false, persist=false) framerange
#@ String (label="Region X,Y,W,H in pixels (empty: all)", value="", required=false, persist=false) region
#@ Boolean (label="Preview on this frame before the run", value=false, persist=false) preview
#@ String (label="Show", choices={"Table and picture", "ThunderSTORM", "Nothing"}, value="Table and picture", persist=false) results
#@ Double (label="Pixel of the picture [nm]", style="format:0.####", value=20, min=1, persist=false) picturepixel
#@ String (label="Other options, as on the command line", value="", required=false, persist=false) moreoptions
#@ Boolean (label="Replace the file if it exists", value=false, persist=false) overwrite
#@output Integer localizations
#@output String csvpath
#@output ImagePlus picture

// A thin skin over 'smlm-bridge localize'. Groovy 2.4 and later.
import groovy.json.JsonSlurper
import ij.IJ
import ij.ImagePlus
import ij.WindowManager
import ij.gui.GenericDialog

/** The classes that the commands share, from macros/SMLM Bridge. */
def shared() {
    def name = '../../../macros/SMLM Bridge/SMLM_Bridge.groovy.txt'
    def here = new File(binding.variables['javax.script.filename']?.toString() ?: '.').absoluteFile.parentFile
    def file = [here, new File(IJ.getDirectory('imagej') ?: '.', 'scripts/Plugins/SMLM Bridge')].collect { new File(it, name) }.find { it.isFile() }
    if (file == null) throw new FileNotFoundException("${new File(name).name} is missing in Fiji: run 'smlm-bridge fiji install' again.")
    return new GroovyShell(getClass().classLoader).evaluate(file.getText('UTF-8'), 'SmlmBridge.groovy')
}

/** The open window of a file, or a new virtual one; null without a display. */
ImagePlus windowOf(File file, ImagePlus active, fiji) {
    if (!fiji.windows()) return null
    def open = (WindowManager.getIDList() ?: [] as int[]).collect { WindowManager.getImage(it) }
    def ofFile = open.find {
        def info = it.originalFileInfo
        info?.directory && info?.fileName && new File(info.directory, info.fileName) == file
    }
    def image = ofFile ?: active ?: IJ.openVirtual(file.path)
    if (image == null) throw new IOException("ImageJ cannot open ${file} for the preview.")
    if (image.window == null) image.show()
    return image
}

/** Localize one frame and mark what was found; returns the number. */
int previewOne(worker, fiji, File source, ImagePlus image, List words) {
    int frame = image == null ? 1 : image.currentSlice
    return fiji.inFolder { File folder ->
        def csv = new File(folder, 'preview.csv')
        def found = worker.run('localize', [source.absolutePath, '-o', csv, '--frames', "${frame}:${frame}"] + words)
        def pixel = new JsonSlurper().parseText(new File(folder, 'preview.protocol.json').getText('UTF-8')).pixel_nm
        if (image != null) fiji.mark(image, csv, (double) pixel, frame)
        if (!fiji.interactive()) IJ.log("SMLM Bridge: ${found.localizations} localizations in frame ${frame} of ${source.name}.")
        return (int) found.localizations
    }
}

/** The threshold to go on with: the preview is repeated until somebody is content, or says no. */
double previewed(worker, fiji, File source, ImagePlus image, double least, Closure words) {
    while (true) {
        int found = previewOne(worker, fiji, source, image, words(least))
        if (!fiji.interactive()) return least
        def dialog = new GenericDialog('Localize with Python: preview')
        dialog.addMessage("${found} localizations in frame ${image.currentSlice}; yellow circles mark them.")
        dialog.addNumericField("Least probability (0: the model's)", least, 2)
        dialog.enableYesNoCancel('Run on the whole movie', 'Preview again')
        dialog.showDialog()
        if (dialog.wasCanceled()) throw new InterruptedException('Cancelled after the preview; no table was written.')
        least = dialog.getNextNumber()
        IJ.resetEscape()
        if (dialog.wasOKed()) return least
    }
}

def bridge = shared()
def fiji = bridge.fiji
fiji.recordable(binding)
def file = movie?.path ? movie : null
def active = file == null ? WindowManager.currentImage : null
def camera = fiji.option('--offset', cameraoffset, -1d) + fiji.option('--e-per-adu', electronsperadu, -1d)
def known = [fiji.nameOrPath(model).endsWith('.psf.h5') ? '--calibration' : '--model', fiji.nameOrPath(model)]
def common = { double least -> known + camera + fiji.option('--threshold', least, 0d) + fiji.option('--roi', region) + fiji.words(moreoptions) }
fiji.inFolder { File folder ->
    def source = file ?: fiji.fileOf(active, folder)
    def worker = bridge.worker.newInstance()
    try {
        double least = threshold
        if (preview) least = previewed(worker, fiji, source, windowOf(source, active, fiji), least, common)
        def done = worker.run('localize', [source.absolutePath, '-o', csv.absolutePath] + common(least) +
            fiji.option('--frames', framerange) + fiji.flag('--overwrite', overwrite))
        localizations = done.localizations
        csvpath = csv.absolutePath
        if (done.failed_frames) IJ.log("SMLM Bridge: ${done.failed_frames} frame(s) failed and were left out.")
        picture = null
        if (localizations == 0) IJ.log("SMLM Bridge: nothing was found in ${source.name}, so there is nothing to show. Preview a frame, and check the camera.")
        else if (results == 'ThunderSTORM') fiji.importIntoThunderstorm(csv)
        else if (results != 'Nothing') {
            fiji.showTable(csv, localizations)
            picture = fiji.render(worker, csv, picturepixel)
        }
    } finally {
        worker.close()
    }
}
IJ.showStatus("${localizations} localizations in ${csv.name}")
