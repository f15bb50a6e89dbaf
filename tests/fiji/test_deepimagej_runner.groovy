// Runs SciJava scripts as Fiji would, with plain Groovy and ij.jar: SCRIPT KEY=VALUE... [+ SCRIPT KEY=VALUE...]...
// Each '#@' line becomes an entry of the binding, with its default where no value is given. One JSON object a run, in a
// line of its own: the '#@output' parameters, or {"error": ...}.
import groovy.json.JsonOutput
import ij.IJ

class Runner {
    static final CONVERT = [File: { new File(it) }, Double: { it as Double }, Boolean: { it == 'true' },
        Integer: { it as Integer }, String: { it }, ImagePlus: { IJ.openImage(it) }]

    static run(File script, Map given) {
        def binding = new Binding(['javax.script.filename': script.path])
        def outputs = []
        script.eachLine('UTF-8') { line ->
            def output = line =~ /^#@output\s+\w+\s+(\w+)/
            def input = line =~ /^#@\s*(\w+)\s*\((.*)\)\s*(\w+)\s*$/
            if (output) outputs << output[0][1]
            else if (input) {
                def (type, settings, name) = input[0][1..3]
                def standard = settings =~ /\bvalue=([^,)]+)/
                def value = given.containsKey(name) ? given.remove(name) : standard ? standard[0][1] : null
                if (value == null) throw new IllegalArgumentException("no value for ${name}")
                binding.setVariable(name, CONVERT[type](value))
            } else if (line =~ /^#@(?!script)/) throw new IllegalArgumentException("not a parameter: ${line}")
        }
        if (given) throw new IllegalArgumentException("the script has no parameter ${given.keySet()}")
        new GroovyShell(binding).evaluate(script.getText('UTF-8').replaceAll(/(?m)^#@.*$/, ''), script.name)
        return outputs.collectEntries { [it, binding.getVariable(it)] }
    }

    /** Press Escape as soon as the hidden file is there that a script writes into. */
    static cancelOnceWriting(File folder) {
        Thread.startDaemon {
            while (!folder.list().any { it.startsWith('.') }) Thread.sleep(1)
            while (true) { IJ.setKeyDown(27); Thread.sleep(1) }
        }
    }
}

def runs = [[]]
args.each { if (it == '+') runs << [] else runs.last() << it }
for (words in runs) {
    def given = words.drop(1).collectEntries { it.split('=', 2) as List }
    def folder = given.remove('cancelin')
    if (folder) Runner.cancelOnceWriting(new File(folder))
    def answer
    try {
        answer = Runner.run(new File(words[0]), given)
    } catch (Exception error) {
        answer = [error: error.class.simpleName + ': ' + error.message]
    }
    println JsonOutput.toJson(answer)
}
System.exit(0)
