package cz.cuni.lf1.lge.ThunderSTORM.results;

public class IJResultsTable {
    private static IJResultsTable table;
    private static final String[] NAMES = {"frame", "x", "y", "intensity"};
    final ResultsTableWindow window = new ResultsTableWindow("results");
    private boolean hidden;

    public static IJResultsTable getResultsTable() {
        if (table == null) {
            table = new IJResultsTable();
            table.window.packFrame();
        }
        return table;
    }

    public static boolean isResultsWindow() {
        return table != null && table.window.isVisible();
    }

    public ResultsTableWindow getTableWindow() {
        return window;
    }

    public void add(double frame, double x, double y, double intensity) {
        window.model.rows.add(new double[]{frame, x, y, intensity});
    }

    public void reset() {
        window.model.rows.clear();
        window.operationsStackPanel.removeAllOperations();
    }

    public void forceHide() {
        hidden = true;
        window.hide();
    }

    public void forceShow() {
        hidden = false;
        window.show();
    }

    public boolean isForceHidden() {
        return hidden;
    }

    public int getRowCount() {
        return window.model.rows.size();
    }

    public java.util.Vector<String> getColumnNames() {
        return new java.util.Vector<String>(java.util.Arrays.asList(NAMES));
    }

    public boolean columnExists(String name) {
        return getColumnNames().contains(name);
    }

    public Units getColumnUnits(String name) {
        return name.equals("frame") ? Units.NONE : name.equals("intensity") ? Units.PHOTON : Units.NM;
    }

    public double[] getColumnAsDoubles(String name) {
        int column = java.util.Arrays.asList(NAMES).indexOf(name);
        double[] values = new double[getRowCount()];
        for (int row = 0; row < values.length; row++) {
            values[row] = window.model.rows.get(row)[column];
        }
        return values;
    }

    public OperationsHistoryPanel getOperationHistoryPanel() {
        return window.operationsStackPanel;
    }

    public java.util.List<? extends PostProcessingModule> getPostProcessingModules() {
        return window.postProcessingModules;
    }

    public void setOriginalState() {
    }

    public void setActualState() {
    }

    public void setMeasurementProtocol(MeasurementProtocol protocol) {
    }

    public void insertIdColumn() {
    }

    public void copyOriginalToActual() {
    }

    public void convertAllColumnsToAnalogUnits() {
    }
}
