package cz.cuni.lf1.lge.ThunderSTORM.results;

public class TripleStateTableModel extends javax.swing.table.AbstractTableModel {
    final java.util.List<double[]> rows = new java.util.ArrayList<double[]>();

    public int getRowCount() {
        return rows.size();
    }

    public int getColumnCount() {
        return 4;
    }

    public Object getValueAt(int row, int column) {
        return rows.get(row)[column];
    }
}
