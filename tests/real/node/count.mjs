// Preloaded into a Node MCP server (node --import ./count.mjs …): remembers the verb of each request that had the
// header `x-test-client: ID`, and tells them in order at GET /_requests/ID.

import { Server } from "node:http";

const seen = new Map();
const { emit } = Server.prototype;

Server.prototype.emit = function (event, request, response) {
  if (event !== "request") return emit.apply(this, arguments);
  if (request.url.startsWith("/_requests/")) {
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify(seen.get(request.url.slice("/_requests/".length)) ?? []));
    return true;
  }
  const client = request.headers["x-test-client"];
  if (client) seen.set(client, [...(seen.get(client) ?? []), request.method]);
  return emit.apply(this, arguments);
};
