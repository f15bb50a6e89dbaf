package cz.cuni.lf1.lge.ThunderSTORM.UI;

public class Help {
    public static javax.swing.JButton createHelpButton(Class<?> owner) {
        HelpButton.touch();
        return new javax.swing.JButton("?");
    }
}
