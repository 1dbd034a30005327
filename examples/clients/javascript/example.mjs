// node example.mjs HOST:PORT MODEL INPUT: one request, a stream, a deadline that is too short; prints JSON.
// APPORTION_KEY: the tenant's key. SLOW_MODEL: a model that takes its time, for the deadline. ONLY=infer: one request, no more.
import { Client, refusal } from "./client.mjs";

const [target, model, input] = process.argv.slice(2);
const client = new Client(target, process.env.APPORTION_KEY);
const tensor = (...values) => ({ name: input, datatype: "FP32", shape: [1, values.length], bytes: Buffer.from(new Float32Array(values).buffer) });
const values = ([output]) => [...new Float32Array(new Uint8Array(output.bytes).buffer)];
const told = {};

told.infer = values(await client.infer(model, [tensor(1, 2, 3)], { deadlineMs: 20_000 }));
if (process.env.ONLY !== "infer") {
  told.stream = [];
  for await (const { id, outputs } of client.stream(model, [[tensor(1)], [tensor(2)], [tensor(3)]])) told.stream.push([id, ...values(outputs)]);
  try {
    const turns = { name: "turns", datatype: "INT64", shape: [1], bytes: Buffer.from(new BigInt64Array([100_000n]).buffer) };
    await client.infer(process.env.SLOW_MODEL, [turns], { deadlineMs: 100 });
  } catch (error) {
    told.deadline = { code: error.code, reason: refusal(error).reason };
  }
  try {
    await client.infer("no-such-model", [tensor(1)]);
  } catch (error) {
    told.unknown = { code: error.code, reason: refusal(error).reason };
  }
}
told.retries = client.retries;
client.close();
console.log(JSON.stringify(told));
