// Runs SciJava scripts as Fiji would, with plain Groovy and ij.jar, in one Java for many runs. Requests come on stdin, one
// JSON object a line: {"script": PATH, "values": {NAME: TEXT}}, and each is answered by one line on stdout:
// {"outputs": {...}} or {"error": ...}, with "log", what ImageJ printed. "escape": press Escape as soon as this file is
// there; "buttons": press these, one dialog after the other; "screenshot": write NAME-0.png, ..., NAME-end.png. "macro": run
// an IJM file with "argument" instead. "image" with "channels": the active image.
import groovy.json.JsonOutput
import groovy.json.JsonSlurper
import ij.IJ
import ij.ImageJ
import ij.ImagePlus
import ij.WindowManager
import ij.measure.ResultsTable
import ij.text.TextWindow
import java.awt.Dialog
import java.awt.Rectangle
import java.awt.Robot
import java.awt.Window
import javax.imageio.ImageIO

/** What SciJava hands to a script of itself; its recorder leaves out inputs that are null at the end. */
class ModuleStandIn {
    List items = []
    Map values = [:]
    ModuleStandIn getInfo() { this }
    List inputs() { items }
    Object getInput(String name) { values[name] }
    void setInput(String name, Object value) { values[name] = value }
}

class Runner {
    static List unrecorded = []
    static final CONVERT = [File: { new File(it) }, Double: { it as Double }, Boolean: { it == 'true' },
        Integer: { it as Integer }, String: { it }]

    /** The parameters of a script: [type, name, default], and the names of its outputs. */
    static List parameters(File script) {
        def inputs = [], outputs = []
        script.eachLine('UTF-8') { line ->
            def output = line =~ /^#@output\s+\w+\s+(\w+)/
            def input = line =~ /^#@\s*(\w+)\s*\((.*)\)\s*(\w+)\s*$/
            if (output) outputs << output[0][1]
            else if (input) {
                def (type, settings, name) = input[0][1..3]
                def standard = settings =~ /\bvalue=(?:"([^"]*)"|([^,)]+))/
                def value = standard ? standard[0][1] ?: standard[0][2] ?: '' : null
                inputs << [type: type, name: name, value: value, optional: settings.contains('required=false')]
            } else if (line =~ /^#@(?!script)/) throw new IllegalArgumentException("not a parameter: ${line}")
        }
        return [inputs, outputs]
    }

    static Map run(File script, Map given) {
        def (inputs, outputs) = parameters(script)
        def binding = new Binding(['javax.script.filename': script.path])
        inputs.each {
            def value = given.containsKey(it.name) ? given.remove(it.name) : it.value
            if (value == null && !it.optional) throw new IllegalArgumentException("no value for ${it.name}")
            binding.setVariable(it.name, value == null ? null : CONVERT[it.type](value))
        }
        def module = new ModuleStandIn(items: inputs.collect { [name: it.name, type: it.type == 'File' ? File : Object] },
            values: inputs.collectEntries { [it.name, binding.getVariable(it.name)] })
        binding.setVariable('org.scijava.script.ScriptModule', module)
        if (given) throw new IllegalArgumentException("the script has no parameter ${given.keySet()}")
        try {
            new GroovyShell(binding).evaluate(script.getText('UTF-8').replaceAll(/(?m)^#@.*$/, ''), script.name)
        } finally {
            unrecorded = module.values.findAll { it.value == null }*.key
        }
        return outputs.collectEntries { [it, described(binding.getVariable(it))] }
    }

    static described(Object value) {
        if (!(value instanceof ImagePlus)) return value
        if (!java.awt.GraphicsEnvironment.isHeadless()) value.show()
        return [width: value.width, height: value.height, bits: value.bitDepth, title: value.title,
            brightest: value.getProcessor().getStatistics().max]
    }

    static Thread when(Closure condition, Closure action) {
        Thread.startDaemon {
            while (!condition()) Thread.sleep(2)
            action()
        }
    }

    static String status() { IJ.getInstance()?.statusBar?.components?.find { it.respondsTo('getText') }?.text ?: '' }

    /** What is on the screen, and what is in ImageJ's windows. */
    static Map seen(String picture) {
        if (picture) ImageIO.write(new Robot().createScreenCapture(new Rectangle(0, 0, 1280, 900)), 'png', new File(picture))
        return [windows: Window.getWindows().findAll { it.visible }*.title,
            overlay: WindowManager.currentImage?.overlay?.size() ?: 0,
            tables: (WindowManager.getNonImageWindows() ?: []).findAll { it instanceof TextWindow && it.resultsTable }
                .collectEntries { [it.title, [rows: it.resultsTable.size(), columns: it.resultsTable.headings as List]] }]
    }
}

def answers = System.out
if (!java.awt.GraphicsEnvironment.isHeadless()) new ImageJ(ImageJ.NO_SHOW).with { setLocation(40, 20); visible = true }
System.in.eachLine('UTF-8') { line ->
    def request = new JsonSlurper().parseText(line)
    def printed = new ByteArrayOutputStream()
    System.setOut(new PrintStream(printed, true, 'UTF-8'))
    def answer = [:], statuses = Collections.synchronizedSet(new LinkedHashSet())
    boolean busy = true
    if (IJ.getInstance()) Thread.startDaemon { while (busy) { statuses << Runner.status(); Thread.sleep(5) } }
    if (request.escape) Runner.when({ new File(request.escape).exists() }) { while (busy) { IJ.setKeyDown(27); Thread.sleep(5) } }
    def dialogs = [request.buttons ?: []].flatten()
    def shots = []
    if (dialogs) Thread.startDaemon {
        dialogs.each { label ->
            def dialog = null
            while (dialog == null) { Thread.sleep(50); dialog = Window.getWindows().find { it instanceof Dialog && it.visible } }
            Thread.sleep(500)
            shots << Runner.seen(request.screenshot ? "${request.screenshot}-${shots.size()}.png" : null)
            def buttons = dialog.components.collectMany { it instanceof java.awt.Container ? it.components as List : [it] }
            def button = buttons.find { it instanceof java.awt.Button && it.label.trim() == label }
            dialog.actionPerformed(new java.awt.event.ActionEvent(button, 0, label))
            while (dialog.visible) Thread.sleep(20)
        }
    }
    try {
        if (request.channels) {
            // The active image of this thread: a file whose planes were made channels since.
            def image = IJ.openImage(request.image)
            image.setDimensions(request.channels, 1, image.stackSize.intdiv(request.channels))
            image.changes = true
            WindowManager.setTempCurrentImage(image)
        }
        if (request.macro) answer.outputs = [result: IJ.runMacro(new File(request.macro).getText('UTF-8'), request.argument)]
        else answer.outputs = Runner.run(new File(request.script), new LinkedHashMap(request.values))
    } catch (Throwable error) {
        answer.error = error.class.simpleName + ': ' + error.message
    }
    busy = false
    WindowManager.setTempCurrentImage(null)
    System.setOut(answers)
    if (IJ.getInstance()) answer.seen = Runner.seen(request.screenshot ? "${request.screenshot}-end.png" : null)
    answers.println(JsonOutput.toJson(answer + [unrecorded: Runner.unrecorded, log: IJ.getLog() ?: printed.toString('UTF-8'), statuses: statuses, shots: shots]))
    answers.flush()
}
System.exit(0)
