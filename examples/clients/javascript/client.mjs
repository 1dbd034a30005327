// A client of the Open Inference Protocol for Node: key, deadline, trace context, and retries as the service asks for them.
import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import protobuf from "protobufjs";

const PROTOS = fileURLToPath(new URL("../../../protos", import.meta.url));
const LOADED = loader.loadSync("inference/grpc_service.proto", { includeDirs: [PROTOS], keepCase: true, longs: String, enums: String, oneofs: true });
const { GRPCInferenceService } = grpc.loadPackageDefinition(LOADED).inference;

// google.rpc.Status as it travels in the trailers of a refusal, as much of it as is needed here.
const RPC = protobuf.parse(`
  syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message RetryInfo { Duration retry_delay = 1; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
`, { keepCase: true }).root;
const detail = (status, name) => {
  const found = status.details.find((each) => each.type_url.endsWith(`/google.rpc.${name}`));
  return found && RPC.lookupType(name).decode(found.value);
};

// What a refusal says: its reason (README.md lists them), and after how many milliseconds to try again; null: not to.
export function refusal(error) {
  const [bytes] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (!bytes) return { reason: null, retryAfterMs: null };
  const status = RPC.lookupType("Status").decode(bytes);
  const delay = detail(status, "RetryInfo")?.retry_delay;
  return {
    reason: detail(status, "ErrorInfo")?.reason ?? null,
    retryAfterMs: delay ? Number(delay.seconds) * 1000 + delay.nanos / 1e6 : null,
  };
}

// W3C trace context: pass the one that you have, so that the request is part of your trace.
export const newTraceparent = () => `00-${randomBytes(16).toString("hex")}-${randomBytes(8).toString("hex")}-01`;

export function floats(name, shape) {
  return { name, datatype: "FP32", shape };
}

export class Client {
  // credentials: grpc.credentials.createSsl(...) where the frontend is reached over TLS.
  constructor(target, key, { credentials = grpc.credentials.createInsecure() } = {}) {
    this.key = key;
    this.retries = 0;
    this.stub = new GRPCInferenceService(target, credentials, {
      "grpc.max_receive_message_length": 64 << 20,
      "grpc.keepalive_time_ms": 30_000,
      // One connection to every frontend behind a headless name, in turn.
      "grpc.service_config": JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] }),
    });
  }

  metadata(traceparent) {
    const metadata = new grpc.Metadata();
    if (this.key) metadata.set("authorization", `Bearer ${this.key}`);
    metadata.set("traceparent", traceparent ?? newTraceparent());
    return metadata;
  }

  // One request. inputs: [{name, datatype, shape, bytes}]; the answer's outputs likewise. The deadline holds over all tries:
  // another one is made only where the service names a delay that the deadline leaves room for.
  async infer(model, inputs, { deadlineMs = 1000, traceparent } = {}) {
    const ends = Date.now() + deadlineMs;
    const metadata = this.metadata(traceparent);
    for (;;) {
      try {
        return outputs(await this.#once(request(model, inputs), metadata, ends));
      } catch (error) {
        const { retryAfterMs } = refusal(error);
        if (retryAfterMs === null || Date.now() + retryAfterMs >= ends) throw error;
        this.retries += 1;
        // Half as much again by chance, so that callers do not come back as one.
        await sleep(retryAfterMs * (1 + Math.random() / 2));
      }
    }
  }

  #once(message, metadata, ends) {
    return new Promise((resolve, reject) => {
      this.stub.ModelInfer(message, metadata, { deadline: ends }, (error, answer) => (error ? reject(error) : resolve(answer)));
    });
  }

  // Many requests over one stream, all in hand at once; answers as they are ready, each with the id of its request.
  async *stream(model, batches, { deadlineMs = 10_000, traceparent } = {}) {
    const call = this.stub.ModelStreamInfer(this.metadata(traceparent), { deadline: Date.now() + deadlineMs });
    batches.forEach((inputs, index) => call.write(request(model, inputs, String(index))));
    call.end();
    for await (const { error_message: problem, infer_response: answer } of call) {
      if (problem) throw new Error(problem);
      yield { id: answer.id, outputs: outputs(answer) };
    }
  }

  close() {
    this.stub.close();
  }
}

function request(model, inputs, id = "") {
  return {
    model_name: model,
    id,
    inputs: inputs.map(({ name, datatype, shape }) => ({ name, datatype, shape })),
    raw_input_contents: inputs.map(({ bytes }) => bytes),
  };
}

function outputs(answer) {
  return answer.outputs.map(({ name, datatype, shape }, index) => ({
    name,
    datatype,
    shape: shape.map(Number),
    bytes: answer.raw_output_contents[index],
  }));
}
