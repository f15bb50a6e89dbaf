package cz.cuni.lf1.lge.ThunderSTORM;

import cz.cuni.lf1.lge.ThunderSTORM.results.PostProcessingModule;

public class ModuleLoader {
    public static java.util.List<PostProcessingModule> getPostProcessingModules() {
        java.util.List<PostProcessingModule> modules = new java.util.ArrayList<PostProcessingModule>();
        modules.add(new PostProcessingModule("filter"));
        modules.add(new PostProcessingModule("merge"));
        modules.add(new PostProcessingModule("drift"));
        return modules;
    }
}
