package cz.cuni.lf1.lge.ThunderSTORM;

import cz.cuni.lf1.lge.ThunderSTORM.results.IJResultsTable;

public class RenderingPlugIn implements ij.plugin.PlugIn {
    public void run(String argument) {
        Recorded.options("Visualization");
        if (!IJResultsTable.isResultsWindow()) {
            ij.IJ.error("Requires `results` window open!");
            return;
        }
        int width = (int) (Double.parseDouble(Recorded.value("imwidth")) * Double.parseDouble(Recorded.value("magnification")));
        int height = (int) (Double.parseDouble(Recorded.value("imheight")) * Double.parseDouble(Recorded.value("magnification")));
        new ij.ImagePlus("picture", new ij.process.FloatProcessor(width, height)).show();
    }
}
