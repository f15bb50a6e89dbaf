package cz.cuni.lf1.lge.ThunderSTORM.results;

public enum Units {
    NONE(""), NM("nm"), PHOTON("photon");

    private final String label;

    Units(String label) {
        this.label = label;
    }

    public String getLabel() {
        return label;
    }
}
