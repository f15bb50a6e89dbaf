package cz.cuni.lf1.lge.ThunderSTORM;

public class CameraSetupPlugIn implements ij.plugin.PlugIn {
    private static double pixelSize = 80.0;

    public void run(String argument) {
        Recorded.options("Camera setup");
        String given = Recorded.value("pixelsize");
        pixelSize = given == null ? 80.0 : Double.parseDouble(given);
    }

    public static double getPixelSize() {
        return pixelSize;
    }
}
