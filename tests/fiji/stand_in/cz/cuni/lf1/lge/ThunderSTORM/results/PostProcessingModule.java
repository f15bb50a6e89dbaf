package cz.cuni.lf1.lge.ThunderSTORM.results;

/** As the real ones: the same action twice in a row replaces the first, and a failure leaves the button disabled. */
public class PostProcessingModule {
    private final String name;
    private final javax.swing.JButton applyButton = new javax.swing.JButton();
    private TripleStateTableModel model;
    private ResultsTableWindow table;
    private java.util.List<double[]> undo;

    public PostProcessingModule(String name) {
        this.name = name;
    }

    public String getMacroName() {
        return name;
    }

    void setModel(TripleStateTableModel model) {
        this.model = model;
    }

    void setTable(ResultsTableWindow table) {
        this.table = table;
    }

    public javax.swing.JPanel getUIPanel() {
        cz.cuni.lf1.lge.ThunderSTORM.UI.Help.createHelpButton(getClass());
        return new javax.swing.JPanel();
    }

    public void run() {
        if (!applyButton.isEnabled()) {
            return;
        }
        applyButton.setEnabled(false);
        if (name.equals(table.operationsStackPanel.getLastOperation())) {
            model.rows.clear();
            model.rows.addAll(undo);
        }
        undo = new java.util.ArrayList<double[]>(model.rows);
        if (name.equals("filter")) {
            String formula = cz.cuni.lf1.lge.ThunderSTORM.Recorded.value("formula");
            if (formula.startsWith("nosuch")) {
                throw new RuntimeException("Variable 'nosuch' does not exist!");
            }
            double least = Double.parseDouble(formula.substring(formula.indexOf('>') + 1).trim());
            int column = formula.startsWith("frame") ? 0 : 3;
            for (int row = model.rows.size() - 1; row >= 0; row--) {
                if (model.rows.get(row)[column] <= least) {
                    model.rows.remove(row);
                }
            }
        } else if (name.equals("drift")) {
            save(cz.cuni.lf1.lge.ThunderSTORM.Recorded.value("path"));
        }
        table.operationsStackPanel.addOperation(name);
        table.setStatus(name);
        applyButton.setEnabled(true);
    }

    private void save(String path) {
        try {
            java.io.FileWriter file = new java.io.FileWriter(path);
            file.write("{\"xFunction\":{\"knots\":[1,4],\"polynomials\":[{\"coefficients\":[0,0.5]}],\"n\":1},"
                + "\"yFunction\":{\"knots\":[1,4],\"polynomials\":[{\"coefficients\":[0]}],\"n\":1},"
                + "\"minFrame\":1,\"maxFrame\":4,\"units\":\"PIXEL\"}");
            file.close();
        } catch (java.io.IOException error) {
            throw new RuntimeException(error);
        }
    }
}
