package cz.cuni.lf1.lge.ThunderSTORM.results;

public class GenericTableWindow {
    protected javax.swing.JFrame frame;
    protected ColoredTable table;
    protected final TripleStateTableModel model;

    public GenericTableWindow(String title) {
        frame = new javax.swing.JFrame(title);
        model = new TripleStateTableModel();
        table = new ColoredTable(model);
    }

    protected void packFrame() {
        frame.add(new javax.swing.JScrollPane(table));
        frame.pack();
    }

    public void show(String title) {
        show();
    }

    public void show() {
        frame.setVisible(true);
    }

    public void hide() {
        frame.setVisible(false);
    }

    public boolean isVisible() {
        return frame.isVisible();
    }

    public class ColoredTable extends javax.swing.JTable {
        public ColoredTable(javax.swing.table.TableModel model) {
            super(model);
        }
    }
}
