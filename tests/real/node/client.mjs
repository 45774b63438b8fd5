// A client on the TypeScript SDK: plays one scenario against an MCP server and prints one line of JSON.
//
//   node client.mjs URL SCENARIO [ARGUMENT …]
//
// The line has what the scenario returned, the session id, the requests that went over the wire (marked with
// `x-test-client`), and how a request with the session id was answered after the session was terminated.
// At a URL that ends with /sse it does what the SDK advises for servers of unknown age: it tries Streamable HTTP,
// and when that is refused HTTP+SSE; the line then has the scenario's result, the wire, and the verbs of
// all requests it began.

import { randomUUID } from "node:crypto";

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import {
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  ListRootsRequestSchema,
  ResourceUpdatedNotificationSchema,
} from "@modelcontextprotocol/sdk/types.js";

const [url, scenario, ...args] = process.argv.slice(2);

function later() {
  let resolve;
  const promise = new Promise((done) => (resolve = done));
  return { promise, resolve };
}

const clientId = randomUUID();
const wire = [];
const sent = [];
const getAnswered = later();
async function observedFetch(target, init) {
  const headers = new Headers(init?.headers);
  headers.set("x-test-client", clientId);
  sent.push(init?.method ?? "GET");
  const response = await fetch(target, { ...init, headers });
  const verb = init?.method ?? "GET";
  wire.push([verb, response.status, (response.headers.get("content-type") ?? "").split(";")[0]]);
  if (verb === "GET") getAnswered.resolve();
  return response;
}

const asked = [];
const updated = later();
const client = new Client(
  { name: "shadowcat-tests", version: "1.0" },
  { capabilities: { elicitation: {}, sampling: {}, roots: {} } },
);
client.setRequestHandler(ElicitRequestSchema, ({ method, params }) => {
  asked.push([method, params.message]);
  return { action: "accept", content: { name: "Ada" } };
});
client.setRequestHandler(CreateMessageRequestSchema, ({ method, params }) => {
  asked.push([method, params.messages[0].content.text]);
  return { model: "a-model", role: "assistant", content: { type: "text", text: "forty-two" } };
});
client.setRequestHandler(ListRootsRequestSchema, ({ method }) => {
  asked.push([method]);
  return { roots: [{ uri: "file:///srv/ada", name: "ada" }] };
});
client.setNotificationHandler(ResourceUpdatedNotificationSchema, ({ params }) => updated.resolve(params.uri));

async function call(name, args = {}, options = {}) {
  const result = await client.callTool({ name, arguments: args }, undefined, options);
  return result.content.map((part) => part.text ?? "").join("");
}

const scenarios = {
  async initialize() {
    return {
      server: client.getServerVersion(),
      capabilities: client.getServerCapabilities(),
      revision: transport.protocolVersion,
    };
  },
  async tools() {
    const { tools } = await client.listTools();
    return { tools: tools.map((tool) => tool.name) };
  },
  async echo() {
    return { said: await call("echo", { message: "grüß dich 🐈" }) };
  },
  async progress() {
    const seen = [];
    const onprogress = ({ progress, total }) => seen.push([progress, total]);
    const said = await call("trigger-long-running-operation", { duration: 0.2, steps: 4 }, { onprogress });
    return { seen, said };
  },
  // The operation would take 100 s: who sees three steps of it well before that was not kept waiting for the end.
  async cancel() {
    const seen = [];
    const abort = new AbortController();
    const onprogress = ({ progress }) => {
      seen.push(progress);
      if (progress === 3) abort.abort("enough");
    };
    const options = { onprogress, signal: abort.signal };
    const outcome = await call("trigger-long-running-operation", { duration: 100, steps: 1000 }, options).then(
      () => "finished",
      () => "cancelled",
    );
    return { seen, outcome, said: await call("echo", { message: "still here" }) };
  },
  // Its connection may be cut as often as one likes: it comes back with the id of the last event it had.
  async survive(duration, steps) {
    const seen = [];
    const tokens = [];
    const options = {
      onprogress: ({ progress }) => seen.push(progress),
      onresumptiontoken: (token) => tokens.push(token),
      timeout: 60_000,
    };
    const operation = { duration: Number(duration), steps: Number(steps) };
    return { said: await call("trigger-long-running-operation", operation, options), seen, tokens };
  },
  async elicit() {
    return { said: await call("trigger-elicitation-request"), asked };
  },
  async sample() {
    return { said: await call("trigger-sampling-request", { prompt: "six times seven?", maxTokens: 20 }), asked };
  },
  async roots() {
    return { said: await call("get-roots-list"), asked };
  },
  async subscribe() {
    const { resources } = await client.listResources();
    const { uri } = resources[0];
    await client.subscribeResource({ uri });
    await call("toggle-subscriber-updates");
    return { uri, updated: await updated.promise };
  },
};

if (new URL(url).pathname.endsWith("/sse")) {
  const modern = new StreamableHTTPClientTransport(new URL(url), { fetch: observedFetch });
  const old = new SSEClientTransport(new URL(url), { fetch: observedFetch });
  await client.connect(modern).catch(() => client.connect(old));
  const result = await scenarios[scenario](...args);
  await client.close();
  process.stdout.write(JSON.stringify({ ...result, clientId, wire, sent }) + "\n", () => process.exit(0));
  await new Promise(() => {});
}

const reconnectionOptions = {
  initialReconnectionDelay: 200,
  reconnectionDelayGrowFactor: 1.5,
  maxReconnectionDelay: 1000,
  maxRetries: 20,
};
const transport = new StreamableHTTPClientTransport(new URL(url), { fetch: observedFetch, reconnectionOptions });
await client.connect(transport);
await getAnswered.promise; // what the server sends on its GET stream before that would be lost
const sessionId = transport.sessionId;
const result = await scenarios[scenario](...args);
await transport.terminateSession();
const afterwards = await fetch(url, {
  method: "POST",
  headers: {
    accept: "application/json, text/event-stream",
    "content-type": "application/json",
    "mcp-protocol-version": transport.protocolVersion,
    "mcp-session-id": sessionId,
  },
  body: JSON.stringify({ jsonrpc: "2.0", id: 1, method: "ping" }),
});
const line = { ...result, clientId, sessionId, wire, afterwards: [afterwards.status, await afterwards.json()] };
process.stdout.write(JSON.stringify(line) + "\n", () => process.exit(0));
