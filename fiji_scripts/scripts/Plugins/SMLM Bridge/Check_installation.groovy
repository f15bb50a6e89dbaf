#@script(label="Check installation", description="Finds, saves or makes the Python of SMLM Bridge and says what is missing", headless=true)
#@ String (label="Python that has smlm_bridge (empty: the one known)", description="The program, or the folder of its environment", columns=30, value="", required=false, persist=false) python
#@ String (label="Make an environment with", choices={"no, use the above", "uv", "pixi"}, value="no, use the above", persist=false) create
#@ String (label="What to install there", description="A name (smlm_bridge[train] can train, too), a wheel, or a folder with the source", columns=30, value="smlm_bridge", required=false, persist=false) source
#@output String pythonpath
#@output String summary

// Runs 'smlm-bridge doctor' in the Python that was found, and keeps that Python if it works. Groovy 2.4 and later.
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
def found
if (create == 'uv' || create == 'pixi') {
    found = [path: bridge.python.create(create, source?.trim() ?: 'smlm_bridge'), from: "${create} in ${bridge.python.environment()}".toString()]
} else if (python?.trim()) {
    found = [path: bridge.python.executable(python.trim()), from: 'you']
    if (found.path == null) throw new FileNotFoundException("There is no Python at '${python}'. Give its program, or the folder of its environment.")
} else {
    found = bridge.python.find()
}
def worker = bridge.worker.newInstance(found)
try {
    def doctor = worker.run('doctor', [])
    def missing = doctor.checks.findAll { it.status == 'missing' }
    if (found.from != 'the environment variable ' + bridge.python.VARIABLE) bridge.python.remember(found.path)
    pythonpath = found.path
    summary = "smlm_bridge ${doctor.version} in ${found.path} (named by ${found.from})"
    IJ.log(["SMLM Bridge: ${summary}", *doctor.checks.collect { "  ${it.status.padRight(8)} ${it.name}: ${it.found ?: 'needed for ' + it.needed_for}" },
        "  ${bridge.fiji.hasThunderstorm() ? 'ok      ' : 'missing '} ThunderSTORM in this Fiji",
        *(missing ? ['To do, only for what you need:', *missing.collect { "  ${it.name}: ${it.advice}" }] : ['Nothing is missing.'])].join('\n'))
} finally {
    worker.close()
}
IJ.showStatus(summary)
