package cz.cuni.lf1.lge.ThunderSTORM.results;

public class OperationsHistoryPanel {
    private final java.util.List<String> operations = new java.util.ArrayList<String>();

    public void addOperation(String name) {
        operations.add(name);
    }

    public Object getLastOperation() {
        return operations.isEmpty() ? null : operations.get(operations.size() - 1);
    }

    public void removeAllOperations() {
        operations.clear();
    }
}
