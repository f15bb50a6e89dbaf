package cz.cuni.lf1.lge.ThunderSTORM;

import cz.cuni.lf1.lge.ThunderSTORM.results.IJResultsTable;

/** Puts one row a slice into the table, or fails in one of ImageJ's ways, by the name of the threshold. */
public class AnalysisPlugIn implements ij.plugin.filter.PlugInFilter {
    private ij.ImagePlus image;

    public int setup(String argument, ij.ImagePlus image) {
        this.image = image;
        return DOES_ALL | NO_CHANGES;
    }

    public void run(ij.process.ImageProcessor processor) {
        Recorded.options("Run analysis");
        cz.cuni.lf1.lge.ThunderSTORM.UI.HelpButton.touch();
        IJResultsTable table = IJResultsTable.getResultsTable();
        table.reset();
        table.forceHide();
        String threshold = Recorded.value("threshold");
        if ("11".equals(threshold)) {
            ij.IJ.handleException(new RuntimeException("handled in silence"));
            return;
        }
        if ("12".equals(threshold)) {
            ij.IJ.error("Error parsing threshold formula!");
            return;
        }
        if ("13".equals(threshold)) {
            return;
        }
        for (int slice = 1; slice <= image.getStackSize(); slice++) {
            table.add(slice, 100.0 * slice, 50.0 * slice, image.getStack().getProcessor(slice).getf(0, 0));
        }
        table.forceShow();
    }
}
