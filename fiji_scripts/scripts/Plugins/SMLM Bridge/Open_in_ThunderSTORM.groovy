#@script(label="Open in ThunderSTORM", description="Opens a table of localizations in ThunderSTORM, with its camera", headless=true)
#@ File (label="Table (CSV; other formats are converted)", style="open", persist=false) table
#@ Double (label="Camera pixel [nm], for tables whose lengths are in pixels (0: in nm)", style="format:0.####", value=0, min=0, persist=false) pixelsize
#@output String csvpath

// ThunderSTORM reads our tables as they are; Python is asked only for other formats. Groovy 2.4 and later.
import ij.IJ
import java.nio.file.Files

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
if (!table.isFile()) throw new FileNotFoundException("There is no table ${table}.")
if (table.name.toLowerCase(Locale.ROOT).endsWith('.csv') && pixelsize == 0) {
    csvpath = table.absolutePath
    fiji.importIntoThunderstorm(table)
} else {
    // Stays until Fiji ends: ThunderSTORM may read it later than now.
    def folder = Files.createTempDirectory('smlm-bridge').toFile()
    def csv = new File(folder, table.name.replaceFirst(/\.[^.]*$/, '') + '.csv')
    [folder, csv]*.deleteOnExit()
    def worker = bridge.worker.newInstance()
    try {
        worker.run('convert', [table.absolutePath, csv.path] + fiji.option('--pixel-nm', pixelsize, 0d))
    } finally {
        worker.close()
    }
    csvpath = csv.path
    fiji.importIntoThunderstorm(csv)
}
