#@script(label="Drift correction", description="Estimates the drift of a table of localizations and takes it out", headless=true)
#@ File (label="ThunderSTORM CSV", style="open", persist=false) table
#@ File (label="Corrected CSV to write", style="save", persist=false) corrected
#@ String (label="Engine", choices={"auto", "aim", "comet", "rcc", "fiducials"}, value="auto", persist=false) engine
#@ File (label="Drift as ThunderSTORM's JSON (empty: not written)", style="save", required=false, persist=false) driftfile
#@ String (label="Show", choices={"Drift", "ThunderSTORM", "Nothing"}, value="Drift", persist=false) results
#@ String (label="Other options, as on the command line", value="", required=false, persist=false) moreoptions
#@ Boolean (label="Replace files that exist", value=false, persist=false) overwrite
#@output String csvpath
#@output Double maxdriftnm
#@output ImagePlus plot

// A thin skin over 'smlm-bridge drift'. Groovy 2.4 and later.
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
def words = [table.absolutePath, '-o', corrected.absolutePath, '--engine', engine] + fiji.option('--save', driftfile) +
    fiji.flag('--overwrite', overwrite) + fiji.words(moreoptions)
def worker = bridge.worker.newInstance()
try {
    def done = worker.run('drift', words)
    csvpath = corrected.absolutePath
    maxdriftnm = done.max_drift_nm as Double
    plot = null
    IJ.log("SMLM Bridge: drift up to ${done.max_drift_nm} nm (engine ${done.engine}); halves of the data differ by ${done.split_half_rms_nm} nm.")
    if (results == 'ThunderSTORM') fiji.importIntoThunderstorm(corrected)
    else if (results != 'Nothing' && done.plot) plot = fiji.opened(new File(done.plot.toString()), "Drift of ${table.name}")
} finally {
    worker.close()
}
IJ.showStatus("Corrected table in ${corrected.name}")
