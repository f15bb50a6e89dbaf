package cz.cuni.lf1.lge.ThunderSTORM.UI;

public class GUI {
    public static void setLookAndFeel() {
        throw new java.awt.HeadlessException("look and feel");
    }

    public static void closeBalloonTip() {
        setLookAndFeel();
    }

    public static void showBalloonTip(javax.swing.JComponent at, String tip) {
        setLookAndFeel();
    }
}
