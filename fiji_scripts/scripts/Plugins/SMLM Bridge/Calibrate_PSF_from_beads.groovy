#@script(label="Calibrate PSF from beads", description="Retrieves the PSF of a microscope from a stack of beads", headless=true)
#@ File (label="Bead stack (TIFF)", style="open", persist=false) stack
#@ Double (label="Travel of the focus from slice to slice [nm], positive into the sample", style="format:0.####", value=0, persist=false) zstep
#@ File (label="Calibration to write (.psf.h5)", style="save", persist=false) calibration
#@ String (label="Kind of PSF", choices={"pupil", "spline", "gaussian"}, value="pupil", persist=false) psf
#@ File (label="Microscope and camera (.toml; empty: the fields below)", style="open", required=false, persist=false) setupfile
#@ Double (label="Numerical aperture (0: of the .toml)", style="format:0.####", value=0, min=0, persist=false) numericalaperture
#@ Double (label="Index of the immersion (0: of the .toml)", style="format:0.####", value=0, min=0, persist=false) immersionindex
#@ Double (label="Index around the beads (0: of the .toml)", style="format:0.####", value=0, min=0, persist=false) sampleindex
#@ Double (label="Emission wavelength [nm] (0: of the .toml)", style="format:0.####", value=0, min=0, persist=false) wavelength
#@ Double (label="Camera pixel in the sample [nm] (0: of the .toml)", style="format:0.####", value=0, min=0, persist=false) pixelsize
#@ Double (label="Camera offset [ADU] (-1: of the .toml)", style="format:0.####", value=-1, persist=false) cameraoffset
#@ Double (label="Photo-electrons per ADU (-1: of the .toml)", style="format:0.####", value=-1, persist=false) electronsperadu
#@ Boolean (label="Write and show a report", value=true, persist=false) report
#@ String (label="Other options, as on the command line", value="", required=false, persist=false) moreoptions
#@ Boolean (label="Replace files that exist", value=false, persist=false) overwrite
#@output String calibrationpath
#@output Double correlation

// A thin skin over 'smlm-bridge calibrate'. Groovy 2.4 and later.
import ij.IJ
import ij.plugin.BrowserLauncher

/** The classes that the commands share, from macros/SMLM Bridge. */
def shared() {
    def name = '../../../macros/SMLM Bridge/SMLM_Bridge.groovy.txt'
    def here = new File(binding.variables['javax.script.filename']?.toString() ?: '.').absoluteFile.parentFile
    def file = [here, new File(IJ.getDirectory('imagej') ?: '.', 'scripts/Plugins/SMLM Bridge')].collect { new File(it, name) }.find { it.isFile() }
    if (file == null) throw new FileNotFoundException("${new File(name).name} is missing in Fiji: run 'smlm-bridge fiji install' again.")
    return new GroovyShell(getClass().classLoader).evaluate(file.getText('UTF-8'), 'SmlmBridge.groovy')
}

if (zstep == 0) throw new IllegalArgumentException('Give the travel of the focus from slice to slice, with its sign; it is never guessed.')
def bridge = shared()
def fiji = bridge.fiji
fiji.recordable(binding)
def page = new File(calibration.absoluteFile.parentFile, calibration.name.replaceFirst(/\.psf\.h5$/, '') + '.report.html')
def words = [stack.absolutePath, '-o', calibration.absolutePath, '--z-step-nm', zstep, '--psf', psf] +
    fiji.option('--setup', setupfile) + fiji.option('--numerical-aperture', numericalaperture, 0d) +
    fiji.option('--immersion-index', immersionindex, 0d) + fiji.option('--sample-index', sampleindex, 0d) +
    fiji.option('--wavelength-nm', wavelength, 0d) + fiji.option('--pixel-nm', pixelsize, 0d) +
    fiji.option('--offset', cameraoffset, -1d) + fiji.option('--e-per-adu', electronsperadu, -1d) +
    (report && psf == 'pupil' ? ['--report', page] : []) + fiji.flag('--overwrite', overwrite) + fiji.words(moreoptions)
def worker = bridge.worker.newInstance()
try {
    def done = worker.run('calibrate', words)
    calibrationpath = calibration.absolutePath
    correlation = done.mean_slice_correlation as Double
    IJ.log("SMLM Bridge: ${calibration.name}: " + done.findAll { it.value instanceof Number }.collect { "${it.key} ${it.value}" }.join(', '))
    done.warnings?.each { IJ.log("Warning: ${it}") }
    if (page.isFile() && fiji.windows()) BrowserLauncher.openURL(page.toURI().toString())
} finally {
    worker.close()
}
IJ.showStatus("Calibration in ${calibration.name}")
