// Runs an ONNX file in Java, as DeepImageJ's engine does: MODEL INPUT OUTPUT B C H W; little-endian float32 files.
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtSession;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;

class Engine {
    public static void main(String[] args) throws Exception {
        FloatBuffer input = ByteBuffer.wrap(Files.readAllBytes(Path.of(args[1]))).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer();
        long[] shape = new long[4];
        for (int i = 0; i < 4; i++) shape[i] = Long.parseLong(args[3 + i]);
        OrtEnvironment environment = OrtEnvironment.getEnvironment();
        try (OrtSession session = environment.createSession(args[0], new OrtSession.SessionOptions());
             OnnxTensor tensor = OnnxTensor.createTensor(environment, input, shape);
             OrtSession.Result result = session.run(Map.of("frames", tensor))) {
            FloatBuffer maps = ((OnnxTensor) result.get(0)).getFloatBuffer();
            ByteBuffer bytes = ByteBuffer.allocate(4 * maps.remaining()).order(ByteOrder.LITTLE_ENDIAN);
            bytes.asFloatBuffer().put(maps);
            Files.write(Path.of(args[2]), bytes.array());
        }
    }
}
