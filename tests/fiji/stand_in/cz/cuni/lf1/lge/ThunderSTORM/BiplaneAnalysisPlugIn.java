package cz.cuni.lf1.lge.ThunderSTORM;

/** Its presence makes the stand-in a "dev". */
public class BiplaneAnalysisPlugIn {
}
