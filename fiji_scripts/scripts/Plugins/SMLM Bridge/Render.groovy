#@script(label="Render", description="Draws a table of localizations", headless=true)
#@ File (label="ThunderSTORM CSV", style="open", persist=false) table
#@ File (label="Picture to write (.tif, .png; empty: only shown)", style="save", required=false, persist=false) picture
#@ Double (label="Pixel of the picture [nm]", style="format:0.####", value=10, min=0.1, persist=false) pixelsize
#@ String (label="Method", choices={"gaussian", "ash", "histogram"}, value="gaussian", persist=false) method
#@ Boolean (label="Colour by z", value=false, persist=false) zcolour
#@ String (label="Other options, as on the command line", value="", required=false, persist=false) moreoptions
#@ Boolean (label="Replace the file if it exists", value=false, persist=false) overwrite
#@output ImagePlus rendered

// A thin skin over 'smlm-bridge render'. Groovy 2.4 and later.
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
def more = ['--method', method] + fiji.flag('--z-color', zcolour) + fiji.words(moreoptions)
def worker = bridge.worker.newInstance()
try {
    if (!picture?.path) rendered = fiji.render(worker, table, pixelsize, more)
    else {
        worker.run('render', [table.absolutePath, '-o', picture.absolutePath, '--pixel-nm', pixelsize] + more + fiji.flag('--overwrite', overwrite))
        rendered = fiji.opened(picture, picture.name)
    }
} finally {
    worker.close()
}
IJ.showStatus("${rendered.width} x ${rendered.height} pixels of ${pixelsize} nm")
