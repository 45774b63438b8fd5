// A server on the TypeScript SDK that speaks 2026-07-28 and refuses everything older.

import { createServer } from "node:http";

import { McpServer, createMcpHandler } from "@modelcontextprotocol/server";

const handler = createMcpHandler(
  () => {
    const server = new McpServer({ name: "modern", version: "1.0" });
    server.registerTool("hello", { description: "Says hello." }, () => ({
      content: [{ type: "text", text: "hello" }],
    }));
    return server;
  },
  { legacy: "reject" },
);

const server = createServer(async (request, response) => {
  const url = `http://${request.headers.host}${request.url}`;
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = chunks.length ? Buffer.concat(chunks) : undefined;
  const answer = await handler.fetch(new Request(url, { method: request.method, headers: request.headers, body }));
  response.writeHead(answer.status, Object.fromEntries(answer.headers));
  if (answer.body) for await (const chunk of answer.body) response.write(chunk);
  response.end();
});
server.listen(0, "127.0.0.1", () => console.log(`listening on port ${server.address().port}`));
