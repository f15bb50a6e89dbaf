package cz.cuni.lf1.lge.ThunderSTORM.ImportExport;

import cz.cuni.lf1.lge.ThunderSTORM.results.IJResultsTable;

public class CSVImportExport {
    public void importFromFile(String path, IJResultsTable table, int first) throws java.io.IOException {
        java.io.BufferedReader file = new java.io.BufferedReader(new java.io.FileReader(path));
        java.util.List<String> names = java.util.Arrays.asList(file.readLine().replace("\"", "").split(","));
        for (String line = file.readLine(); line != null; line = file.readLine()) {
            String[] cells = line.split(",");
            table.add(Double.parseDouble(cells[names.indexOf("frame")]), Double.parseDouble(cells[names.indexOf("x [nm]")]),
                Double.parseDouble(cells[names.indexOf("y [nm]")]), Double.parseDouble(cells[names.indexOf("intensity [photon]")]));
        }
        file.close();
    }

    public void exportToFile(String path, int precision, IJResultsTable table, java.util.List<String> columns)
            throws java.io.IOException {
        java.io.FileWriter file = new java.io.FileWriter(path);
        file.write(columns + " " + precision + " " + table.getRowCount());
        file.close();
    }
}
