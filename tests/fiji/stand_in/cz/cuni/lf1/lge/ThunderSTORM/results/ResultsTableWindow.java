package cz.cuni.lf1.lge.ThunderSTORM.results;

public class ResultsTableWindow extends GenericTableWindow {
    java.util.List<? extends PostProcessingModule> postProcessingModules;
    OperationsHistoryPanel operationsStackPanel;
    boolean livePreview;
    Object previewRenderer;

    public ResultsTableWindow(String title) {
        super(title);
    }

    @Override
    protected void packFrame() {
        super.packFrame();
        operationsStackPanel = new OperationsHistoryPanel();
        postProcessingModules = cz.cuni.lf1.lge.ThunderSTORM.ModuleLoader.getPostProcessingModules();
        for (PostProcessingModule module : postProcessingModules) {
            module.setModel(model);
            module.setTable(this);
            module.getUIPanel();
        }
    }

    public void setStatus(String text) {
        frame.setTitle(text);
    }

    public void showPreview() {
        frame.repaint();
    }

    public void setLivePreview(boolean enabled) {
        frame.repaint();
    }

    public void setPreviewRenderer(Object renderer) {
        frame.repaint();
    }
}
