package cz.cuni.lf1.lge.ThunderSTORM;

/** What the commands were called with: the text, and each value as ImageJ's macro parser finds it. */
public class Recorded {
    public static final java.util.List<String> CALLS = new java.util.ArrayList<String>();

    public static String options(String command) {
        String options = ij.Macro.getOptions();
        CALLS.add(command + ": " + options);
        return options;
    }

    public static String value(String key) {
        return ij.Macro.getValue(ij.Macro.getOptions(), key, null);
    }
}
