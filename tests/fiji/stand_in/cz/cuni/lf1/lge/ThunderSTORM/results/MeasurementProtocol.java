package cz.cuni.lf1.lge.ThunderSTORM.results;

public class MeasurementProtocol {
}
