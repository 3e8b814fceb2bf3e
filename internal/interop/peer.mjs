// The other side of interop_test.go: a service and a client written with the
// JavaScript client of NATS. It looks at the responder of the test as any client
// would, prints what it saw as one line of JSON, and serves until its input ends.

import { connect } from "@nats-io/transport-node";
import { ServiceError, Svcm } from "@nats-io/services";

const nc = await connect({ servers: process.argv[2], name: "peer" });
const services = new Svcm(nc);

// --- A service of ours, for the requester of the test --------------------------

const service = await services.add({
  name: "peer",
  version: "0.1.0",
  description: "A service in JavaScript.",
});

service.addEndpoint("upper", {
  subject: "js.upper",
  handler: (err, msg) => {
    if (err) throw err;
    const word = msg.json();
    if (word === "") {
      msg.respondError(422, "nothing to do", JSON.stringify({ field: "word" }));
      return;
    }
    if (word === "garble") {
      msg.respond("not JSON");
      return;
    }
    const headers = msg.headers;
    msg.respond(JSON.stringify(word.toUpperCase()), { headers });
  },
});

// --- A client, for the responder of the test -----------------------------------

const client = services.client({ strategy: "stall", maxWait: 500 });

async function all(found) {
  const list = [];
  for await (const one of await found) list.push(one);
  return list;
}

async function ask(word) {
  const reply = await nc.request("go.echo", JSON.stringify(word), { timeout: 5000 });
  const error = ServiceError.isServiceError(reply) ? ServiceError.toServiceError(reply) : null;
  return {
    value: error ? null : reply.json(),
    code: error?.code ?? 0,
    message: error?.message ?? "",
    details: error ? reply.string() : "",
    word: reply.headers?.get("Word") ?? "",
  };
}

async function fails(subject, timeout) {
  try {
    await nc.request(subject, JSON.stringify("x"), { timeout });
    return "";
  } catch (err) {
    return err.constructor.name;
  }
}

const report = {
  good: await ask("hello"),
  told: await ask("told"),
  kept: await ask("kept"),
  undecodable: await ask({ not: "a word" }),
  nobody: await fails("go.nobody", 1000),
  pings: await all(client.ping("goflux-echo")),
  infos: await all(client.info("goflux-echo")),
  stats: await all(client.stats("goflux-echo")),
  everybody: (await all(client.ping())).map((s) => s.name).sort(),
};

console.log(JSON.stringify(report));

process.stdin.resume();
process.stdin.on("end", async () => {
  await service.stop();
  await nc.drain();
});
