#@script(label="Train a model", description="Trains a network for the microscope of a calibration", headless=true)
#@ File (label="Calibration (.psf.h5)", style="open", persist=false) calibration
#@ File (label="Model to write (.onnx)", style="save", persist=false) model
#@ Double (label="Time for training [minutes]", style="format:0.####", value=120, min=0.01, persist=false) minutes
#@ File (label="Ranges of the training frames (.toml; empty: the defaults)", style="open", required=false, persist=false) ranges
#@ String (label="Start from the weights of a model (file or shipped name; empty: none)", value="", required=false, persist=false) startfrom
#@ Boolean (label="Go on with a training that was cancelled", value=false, persist=false) resume
#@ String (label="Other options, as on the command line", value="", required=false, persist=false) moreoptions
#@ Boolean (label="Replace the model if it exists", value=false, persist=false) overwrite
#@output String modelpath
#@output Integer samples

// A thin skin over 'smlm-bridge train'. Groovy 2.4 and later.
import ij.IJ

/** The classes that the commands share, from macros/SMLM Bridge. */
def shared() {
    def name = '../../../macros/SMLM Bridge/SMLM_Bridge.groovy.txt'
    def here = new File(binding.variables['javax.script.filename']?.toString() ?: '.').absoluteFile.parentFile
    def file = [here, new File(IJ.getDirectory('imagej') ?: '.', 'scripts/Plugins/SMLM Bridge')].collect { new File(it, name) }.find { it.isFile() }
    if (file == null) throw new FileNotFoundException("${new File(name).name} is missing in Fiji: run 'smlm-bridge fiji install' again.")
    return new GroovyShell(getClass().classLoader).evaluate(file.getText('UTF-8'), 'SmlmBridge.groovy')
}

def bridge = shared()
def fiji = bridge.fiji
fiji.recordable(binding)
def words = [fiji.nameOrPath(calibration), '-o', model.absolutePath, '--minutes', minutes] + fiji.option('--ranges', ranges) +
    fiji.option('--from', startfrom) + fiji.flag('--resume', resume) + fiji.flag('--overwrite', overwrite) + fiji.words(moreoptions)
def worker = bridge.worker.newInstance()
try {
    def done = worker.run('train', words)
    modelpath = model.absolutePath
    samples = done.samples as Integer
    IJ.log("SMLM Bridge: ${model.name}, trained on ${done.samples} frames in ${Math.round((double) done.seconds)} s. On simulated frames: ${done.scores}")
} catch (InterruptedException cancelled) {
    def checkpoint = new File(model.absoluteFile.parentFile, model.name.replaceFirst(/\.onnx$/, '') + '.checkpoint')
    if (!checkpoint.isFile()) throw cancelled
    throw new InterruptedException("Cancelled; no model was written. ${checkpoint.name} stays: tick 'Go on with a training that was cancelled' to use it.")
} finally {
    worker.close()
}
IJ.showStatus("Model in ${model.name}")
