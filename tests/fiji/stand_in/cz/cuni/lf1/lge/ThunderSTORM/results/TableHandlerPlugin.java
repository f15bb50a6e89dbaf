package cz.cuni.lf1.lge.ThunderSTORM.results;

public class TableHandlerPlugin implements ij.plugin.PlugIn {
    public void run(String argument) {
        cz.cuni.lf1.lge.ThunderSTORM.Recorded.options("Show results table");
        try {
            for (PostProcessingModule module : IJResultsTable.getResultsTable().getPostProcessingModules()) {
                if (module.getMacroName().equals(cz.cuni.lf1.lge.ThunderSTORM.Recorded.value("action"))) {
                    module.run();
                }
            }
        } catch (Exception error) {
            ij.IJ.handleException(error);
        }
    }
}
