"""The only room that speaks Java: ImageJ, Fiji and ThunderSTORM driven from Python."""
