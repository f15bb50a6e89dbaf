// Movie -> table -> drift -> picture, as a plain ImageJ macro.
//
// In Fiji it runs the commands under Plugins > SMLM Bridge; in an ImageJ without them it calls Python itself.
// Without an argument it asks. With one:  movie|model|folder  or  movie|model|folder|python
//   fiji --headless -macro Movie_to_picture.ijm "/data/movie.tif|tetrapod_storm|/data/results"
// model is a file (.onnx) or the name of a shipped one. Results in the folder: NAME.csv, NAME_corrected.csv, NAME.png.

argument = getArgument();
if (argument != "") {
    parts = split(argument, "|");
    if (parts.length < 3) exit("Give movie|model|folder, got: " + argument);
    movie = parts[0]; model = parts[1]; folder = parts[2];
    python = ""; if (parts.length > 3) python = parts[3];
} else {
    movie = File.openDialog("Movie");
    model = getString("Model: a file, or the name of a shipped one", "tetrapod_storm");
    folder = getDirectory("Folder for the results");
    python = "";
}
if (!endsWith(folder, File.separator)) folder = folder + File.separator;
if (!File.exists(folder)) File.makeDirectory(folder);
name = File.getNameWithoutExtension(movie);
csv = folder + name + ".csv";
corrected = folder + name + "_corrected.csv";
picture = folder + name + ".png";

if (hasCommand("Localize with Python")) {
    run("Localize with Python", "movie=[" + movie + "] model=[" + model + "] csv=[" + csv + "] threshold=0 cameraoffset=-1 "
        + "electronsperadu=-1 framerange=[] region=[] preview=false results=Nothing picturepixel=20 moreoptions=[] overwrite=true");
    run("Drift correction", "table=[" + csv + "] corrected=[" + corrected + "] engine=auto driftfile=[] results=Nothing "
        + "moreoptions=[] overwrite=true");
    run("Render", "table=[" + corrected + "] picture=[" + picture + "] pixelsize=10 method=gaussian zcolour=false moreoptions=[] "
        + "overwrite=true");
} else {
    if (python == "") python = knownPython();
    check(python, "localize", exec(python, "-m", "smlm_bridge", "localize", movie, "--model", model, "-o", csv, "--overwrite", "--quiet", "--json"));
    check(python, "drift", exec(python, "-m", "smlm_bridge", "drift", csv, "-o", corrected, "--overwrite", "--quiet", "--json"));
    check(python, "render", exec(python, "-m", "smlm_bridge", "render", corrected, "-o", picture, "--overwrite", "--quiet", "--json"));
    if (getInfo("java.awt.headless") != "true") open(picture);
}
if (!File.exists(picture)) exit("There is no " + picture + ": see the Log and Console windows.");
print("SMLM Bridge: " + picture);

// Whether a command is in the menus; plain ImageJ has no menus without a display.
function hasCommand(command) {
    commands = "" + call("ij.Menus.getCommands");
    if (indexOf(commands, command + "=") >= 0) return true;
    return false;
}

// The Python of the environment variable, the one that 'Check installation' saved, or that of 'smlm-bridge fiji install'.
function knownPython() {
    path = "" + call("java.lang.System.getenv", "SMLM_BRIDGE_PYTHON");
    if (path == "" || path == "null") path = call("ij.Prefs.get", "smlm.bridge.python", "");
    manifest = getDirectory("imagej") + "smlm_bridge.json";
    if (path == "" && File.exists(manifest)) {
        text = File.openAsString(manifest);
        from = indexOf(text, "\"python\": \"") + 11;
        if (from > 10) path = replace(substring(text, from, indexOf(text, "\"", from)), "\\\\\\\\", "\\\\");
    }
    if (path == "") exit("SMLM Bridge: where is Python? Set the environment variable SMLM_BRIDGE_PYTHON, or give movie|model|folder|python.");
    return path;
}

// Python answers with one JSON object; anything else is a failure.
function check(python, step, answer) {
    if (indexOf(answer, "{") < 0) exit("SMLM Bridge: " + step + " gave no answer. Does " + python + " -m smlm_bridge doctor run in a terminal? " + answer);
    if (indexOf(answer, "\"error\":") >= 0) exit("SMLM Bridge: " + step + " failed: " + answer);
    print(step + ": " + answer);
}
