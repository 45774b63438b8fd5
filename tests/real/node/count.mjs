// Preloaded into a Node MCP server (node --import ./count.mjs …): remembers the verb of each request that had the
// header `x-test-client: ID`, and tells them in order at GET /_requests/ID; at GET /_calls/ID it tells the bodies.

import { Server } from "node:http";

const seen = new Map();
const bodies = new Map();
const { emit } = Server.prototype;

Server.prototype.emit = function (event, request, response) {
  if (event !== "request") return emit.apply(this, arguments);
  const [, asked, id] = request.url.split("/");
  if (asked === "_requests" || asked === "_calls") {
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify((asked === "_calls" ? bodies : seen).get(id) ?? []));
    return true;
  }
  const client = request.headers["x-test-client"];
  if (client) {
    seen.set(client, [...(seen.get(client) ?? []), request.method]);
    const body = [];
    request.emit = function (name, chunk) {
      if (name === "data") body.push(chunk);
      if (name === "end" && body.length) {
        bodies.set(client, [...(bodies.get(client) ?? []), Buffer.concat(body).toString()]);
      }
      return Object.getPrototypeOf(this).emit.apply(this, arguments);
    };
  }
  return emit.apply(this, arguments);
};
