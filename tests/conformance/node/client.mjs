// A client on the TypeScript SDK: connects in the mode (legacy, auto, a revision to insist on, or sse for HTTP+SSE), lists
// the tools and calls one that needs no arguments. Prints one line of JSON: what it found, or the error it was told.
//
//   node client.mjs URL MODE TOOL

import { Client, SSEClientTransport, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";

const [url, mode, tool] = process.argv.slice(2);
const client = new Client(
  { name: "shadowcat-conformance", version: "1.0" },
  { versionNegotiation: { mode: mode === "sse" ? "legacy" : mode.startsWith("2") ? { pin: mode } : mode } },
);
let line;
try {
  const Transport = mode === "sse" ? SSEClientTransport : StreamableHTTPClientTransport;
  const transport = new Transport(new URL(url));
  await client.connect(transport);
  const { tools } = await client.listTools();
  line = {
    server: client.getServerVersion(),
    tools: tools.map((each) => each.name),
    said: (await client.callTool({ name: tool, arguments: {} })).content,
  };
  await client.close();
} catch (error) {
  line = { error: error.name, code: error.code, message: error.message };
}
process.stdout.write(JSON.stringify(line).replaceAll(new URL(url).origin, "ORIGIN") + "\n", () => process.exit(0));
