// One run of untrusted Python, in WebAssembly (Pyodide) inside Deno, whose permissions allow reading the
// folder of the runtime and nothing else. Speaks the frames of wire.py: says that it is ready, takes one
// job, answers, ends; or, if the job is a session, takes block after block until the input ends. Arguments: folder of the runtime, program.py, cap of output, tail of errors, MiB.
const [runtime, programFile, cap, tail, scratchMb, ...preload] = Deno.args;
const { loadPyodide } = await import(`file://${runtime}/pyodide/pyodide.mjs`);

const encoder = new TextEncoder();

function writeAll(bytes) {
  for (let at = 0; at < bytes.length; ) at += Deno.stdout.writeSync(bytes.subarray(at));
}

function send(message, files = []) {
  const sizes = files.map(([name, data]) => [name, data.length]);
  // ASCII only, like wire.py.
  const body = encoder.encode(
    JSON.stringify({ ...message, files: sizes }).replace(
      /[\u007f-\uffff]/g,
      (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"),
    ),
  );
  const head = new DataView(new ArrayBuffer(8));
  head.setUint32(0, body.length);
  head.setUint32(4, files.reduce((sum, [, data]) => sum + data.length, 0));
  writeAll(new Uint8Array(head.buffer));
  writeAll(body);
  for (const [, data] of files) writeAll(data);
}

function readExactly(size) {
  const data = new Uint8Array(size);
  for (let at = 0; at < size; ) {
    const n = Deno.stdin.readSync(data.subarray(at));
    if (n === null) Deno.exit(0);
    at += n;
  }
  return data;
}

function receive() {
  const head = new DataView(readExactly(8).buffer);
  const message = JSON.parse(new TextDecoder().decode(readExactly(head.getUint32(0))));
  let at = 0;
  const data = readExactly(head.getUint32(4));
  message.files = message.files.map(([name, size]) => [name, data.subarray(at, (at += size))]);
  return message;
}

/** Collects what one stream carries: all of it up to the cap, or its end. */
class Collector {
  constructor(keep) {
    this.keep = keep;
    this.parts = [];
    this.size = 0;
  }
  write(bytes) {
    this.size += bytes.length;
    if (this.size > Number(cap) && !job.session) finish("output", null);
    const room = Math.max(0, Number(cap) - this.size + bytes.length);
    this.parts.push(bytes.slice(0, room));
    return bytes.length;
  }
  text() {
    const all = new Uint8Array(this.parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of this.parts) {
      all.set(part, at);
      at += part.length;
    }
    return new TextDecoder().decode(all.subarray(Math.max(0, all.length - this.keep)));
  }
}

// The code can reach JavaScript, but nothing there that Deno's permissions do not refuse.
const python = await loadPyodide({ indexURL: `${runtime}/pyodide/`, jsglobals: {}, env: { HOME: "/scratch" } });
python.FS.mkdir("/packages");
for (const entry of Deno.readDirSync(`${runtime}/packages`)) {
  const wheel = Deno.readFileSync(`${runtime}/packages/${entry.name}`);
  python.unpackArchive(wheel, "wheel", { extractDir: "/packages" });
}
const { FS } = python;
FS.mkdir("/optillm");
FS.writeFile("/optillm/program.py", Deno.readFileSync(programFile));
FS.mkdirTree("/scratch");
const modules = python
  .runPython(
    `
import importlib, os, sys
sys.path[:0] = ["/optillm"]
sys.path.append("/packages")
def _preload(names):
    for name in filter(None, names.split(",")):
        try:
            importlib.import_module(name)
            yield name
        except ImportError:
            continue
os.environ.clear()
os.environ.update(HOME="/scratch", TMPDIR="/scratch", LANG="C.UTF-8")
lambda names: ",".join(_preload(names))
`,
  )(preload.join(","))
  .split(",")
  .filter(Boolean);
const execute = python.runPython("import program, os\nos.chdir('/scratch')\nprogram.execute");
send({ ready: modules });

const job = receive();
let out = new Collector(Number(cap));
let err = new Collector(Number(tail));
let started = performance.now();
let outOfMemory = false;

function finish(status, exitCode) {
  const seconds = (performance.now() - started) / 1000;
  const [files, complete] = job.keep_files ? takeFiles("/scratch", 0, [[], Number(scratchMb) << 20]) : [[], true];
  send({ status: complete ? status : "output", exit_code: exitCode, stdout: out.text(), stderr: err.text(), seconds }, files);
  Deno.exit(0);
}

function takeFiles(folder, depth, [taken, left]) {
  for (const name of FS.readdir(folder).filter((n) => n !== "." && n !== "..").sort()) {
    const path = `${folder}/${name}`;
    const { mode, size } = FS.lstat(path);
    if (FS.isDir(mode)) {
      if (depth < 16) {
        const [, complete] = takeFiles(path, depth + 1, [taken, left - taken.reduce((s, [, d]) => s + d.length, 0)]);
        if (!complete) return [taken, false];
      }
    } else if (FS.isFile(mode)) {
      if (taken.reduce((sum, [, data]) => sum + data.length, size) > left) return [taken, false];
      taken.push([path.slice("/scratch/".length), FS.readFile(path)]);
    }
  }
  return [taken, true];
}

/** Blocks in one namespace; a request of theirs goes to the server, and they stand still meanwhile. */
function session() {
  const ask = (body) => {
    send({ request: true }, [["body", encoder.encode(body)]]);
    const answer = receive();
    return (answer.refused ? "E" : "A") + new TextDecoder().decode(answer.files[0][1]);
  };
  const run = python.runPython(`
import json
def _session(passed_on):
    def ask(name, arguments):
        said = passed_on(json.dumps([name, arguments]))
        if said[0] == "E":
            raise RuntimeError(said[1:])
        return json.loads(said[1:])
    return program.Console(ask).run
_session
`)(ask);
  send({ ready: true });
  for (;;) {
    const code = new TextDecoder().decode(receive().files[0][1]);
    out = new Collector(Number(cap));
    err = new Collector(Number(tail));
    started = performance.now();
    let status = "killed";
    let exitCode = null;
    try {
      status = run(code);
    } catch (error) {
      if (typeof error?.status === "number") [status, exitCode] = ["error", error.status];
    }
    const alive = exitCode === null && status !== "killed";
    if (alive && Math.max(out.size, err.size) > Number(cap)) status = "output";
    const seconds = (performance.now() - started) / 1000;
    send({ status, exit_code: exitCode, stdout: out.text(), stderr: err.text(), seconds, alive });
    if (!alive) Deno.exit(0);
  }
}

for (const [name, data] of job.files) {
  const parts = name.split("/").filter((part) => part && part !== ".");
  for (let i = 1; i < parts.length; i++) FS.mkdirTree("/scratch/" + parts.slice(0, i).join("/"));
  try {
    FS.writeFile("/scratch/" + parts.join("/"), data);
  } catch (error) {
    send({ bad_files: `${name}: ${error.message}` });
    Deno.exit(0);
  }
}
const stdin = encoder.encode(job.stdin);
let position = 0;
python.setStdin({
  read(buffer) {
    const part = stdin.subarray(position, position + buffer.length);
    buffer.set(part);
    position += part.length;
    return part.length;
  },
});
python.setStdout({ write: (bytes) => out.write(bytes) });
python.setStderr({ write: (bytes) => err.write(bytes) });
if (job.session) session();
started = performance.now();
let status = null;
try {
  status = execute(job.code, () => (outOfMemory = true));
} catch (error) {
  // os._exit, or a crash of the interpreter itself.
  if (typeof error?.status === "number") status = error.status;
}
if (status === null) finish("killed", null);
if (status === 0) finish("ok", 0);
finish(outOfMemory ? "memory" : "error", status);
