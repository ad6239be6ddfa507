// Commands and sessions.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { all, refused } from '../kit.mjs';

// Run an assertion again that fails where the SDK was kept from the processor: over HTTP it takes what one read gives it
// for a frame, and two that came meanwhile for one. Where a node sends them together or larger, none of many attempts is
// right.
const oneOf = async (times, assertion) => {
  for (let left = times - 1; ; left--) {
    try {
      return await assertion();
    } catch (error) {
      if (left === 0) throw error;
    }
  }
};

const BOTH = ['-c', 'echo out; echo err >&2; exit 7'];

export default (sdk, kit) => [
  [['SpriteCommand', 'Sprite.spawn', 'SpriteCommand.start', 'SpriteCommand.wait', 'SpriteCommand.exitCode'],
    async function spawn() {
      const sprite = await kit.sprite();
      const command = sprite.spawn('sh', ['-c', 'cat; echo "$A" >&2; pwd >&2; exit 3'], { env: { A: 'ü' }, cwd: '/usr' });
      assert.equal(command.exitCode(), -1);
      await once(command, 'spawn');
      command.stdin.write('one ');
      command.stdin.end('two\n');
      const [out, err, code] = await Promise.all([text(command.stdout), text(command.stderr), command.wait()]);
      assert.deepEqual([out, err, code, command.exitCode()], ['one two\n', 'ü\n/usr\n', 3, 3]);
      assert.match((await refused(command.start())).message, /already started/);
      const whole = new sdk.SpriteCommand(sprite, 'sh', ['-c', 'exit 4']);
      await whole.start();
      assert.equal(await whole.wait(), 4);
    }],

  [['Sprite.execFile', 'Sprite.exec', 'ExecError', 'ExecError.exitCode', 'ExecError.stdout', 'ExecError.stderr'],
    async function exec() {
      const sprite = await kit.sprite();
      assert.deepEqual(await sprite.execFile('sh', ['-c', 'echo out; echo err >&2']),
        { stdout: 'out\n', stderr: 'err\n', exitCode: 0 });
      assert.equal((await sprite.exec('echo of one line')).stdout, 'of one line\n');
      const { stdout } = await sprite.execFile('head', ['-c', `${8 << 20}`, '/dev/zero'], { encoding: 'buffer' });
      assert(Buffer.alloc(8 << 20).equals(stdout));
      const error = await refused(sprite.execFile('sh', BOTH));
      assert(error instanceof sdk.ExecError);
      assert.deepEqual([error.exitCode, error.stdout, error.stderr], [7, 'out\n', 'err\n']);
      assert.equal((await refused(sprite.execFile('no-such-program'))).exitCode, 127);
      assert.match((await refused(sprite.execFile('yes', [], { maxBuffer: 1 << 20 }))).message, /maxBuffer/);
    }],

  [['Sprite.execFile'],
    async function inputThatNeverEnds() {
      // `execFile` sends no end of input: what reads to it goes on until something else ends it.
      const sprite = await kit.sprite();
      const ended = refused(sprite.execFile('sh', ['-c', 'echo $$ > reader; exec cat']));
      let pid = '';
      while (!pid) pid = (await sprite.execFile('sh', ['-c', 'cat reader 2>/dev/null; true'])).stdout.trim();
      await sprite.execFile('sh', ['-c', `rm reader; kill -TERM ${pid}`]);
      assert.equal((await ended).exitCode, 128 + 15);
    }],

  [['Sprite.execFileHTTP'],
    async function overHttp() {
      const sprite = await kit.sprite();
      const options = { env: { A: 'b' }, cwd: '/usr', input: 'in\n' };
      await oneOf(10, async () => {
        const { stdout, stderr, exitCode } = await sprite.execFileHTTP('sh', ['-c', 'cat; pwd; echo $A >&2'], options);
        assert.deepEqual([stdout, stderr, exitCode], ['in\n/usr\n', 'b\n', 0]);
      });
      const script = 'for i in $(seq 200); do echo $i; echo $i >&2; done; exit 7';
      const lines = [...Array(200).keys()].map(each => `${each + 1}\n`).join('');
      await oneOf(10, async () => {
        const error = await refused(sprite.execFileHTTP('sh', ['-c', script]));
        assert.deepEqual([error.exitCode, error.stdout, error.stderr], [7, lines, lines]);
      });
      await oneOf(10, async () => {
        const { stdout } = await sprite.execFileHTTP('head', ['-c', '300000', '/dev/zero']);
        assert.equal(stdout, '\0'.repeat(300_000));
      });
      assert.equal((await sprite.execFileHTTP('true')).exitCode, 0);
      const late = await refused(sprite.execFileHTTP('sleep', ['600'], { timeout: 300 }));
      assert.equal(late.name, 'TimeoutError');
    }],

  [['SpriteCommand.kill', 'SpriteCommand.signal', 'SpriteCommand.wait'],
    async function signals() {
      const sprite = await kit.sprite();
      for (const [send, code] of [
        [command => command.kill(), 128 + 15],
        [command => command.kill('SIGKILL'), 128 + 9],
        [command => command.signal('INT'), 128 + 2],
      ]) {
        const command = sprite.spawn('sh', ['-c', 'echo ready; exec sleep 600']);
        await once(command.stdout, 'data');
        send(command);
        assert.equal(await command.wait(), code);
      }
    }],

  [['Sprite.spawn', 'SpriteCommand.resize', 'SpriteCommand.exitCode'],
    async function terminal() {
      // The SDK takes a terminal's exit from the close code: 0 for 1000, 1 for whatever else.
      const sprite = await kit.sprite();
      const sized = sprite.spawn('stty', ['size'], { tty: true, rows: 30, cols: 101 });
      const [out, code] = await Promise.all([text(sized.stdout), sized.wait()]);
      assert.deepEqual([out, code], ['30 101\r\n', 0]);
      const failed = sprite.spawn('sh', ['-c', 'exit 5'], { tty: true });
      assert.equal(await failed.wait(), 1);
      assert.equal(failed.exitCode(), 1);
      const script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done";
      const resized = sprite.spawn('sh', ['-c', script], { tty: true });
      let said = '';
      resized.stdout.on('data', data => {
        said += data;
        if (String(data).includes('ready')) resized.resize(77, 33);
      });
      assert.equal(await resized.wait(), 0);
      assert.match(said, /33 77\r\n/);
    }],

  [['Sprite.createSession', 'Sprite.attachSession', 'Sprite.listSessions', 'Sprite.killSession', 'SessionKillStream',
    'SessionKillStream.next', 'SessionKillStream.processAll', 'SessionKillStream.close'],
    async function sessions() {
      const sprite = await kit.sprite();
      const first = sprite.createSession('sh', ['-c', 'read -r line; echo "got $line"; sleep 600'], { cwd: '/usr' });
      const [{ session_id: id, tty }] = await once(first, 'message');
      assert(typeof id === 'string' && tty);
      const listed = (await sprite.listSessions()).find(each => each.id === id);
      assert(listed.created instanceof Date && listed.tty && listed.isActive && listed.workdir === '/usr');
      assert.match(listed.command, /read -r line/);
      const second = sprite.attachSession(id);
      await once(second, 'spawn');
      let said = '';
      const told = new Promise(resolve => second.stdout.on('data', data => {
        said += data;
        if (said.includes('got it\r\n')) resolve();
      }));
      second.stdin.write('it\n');
      await told;
      const events = [];
      const stream = await sprite.killSession(id, 'SIGKILL', '20s');
      const { signal, type, pid } = await stream.next();
      assert.deepEqual([type, signal, typeof pid], ['signal', 'SIGKILL', 'number']);
      await stream.processAll(event => events.push([event.type, event.exitCode]));
      assert.deepEqual(events.at(-1), ['complete', 128 + 9]);
      assert.deepEqual(await Promise.all([first.wait(), second.wait()]), [1, 1]);
      stream.close();
      assert.equal((await refused(sprite.killSession('no-such'))).statusCode, 404);
    }],

  [['Sprite.createSession', 'Sprite.attachSession'],
    async function sessionsWithoutTheirClient() {
      const sprite = await kit.sprite();
      const first = sprite.createSession('sh', ['-c', 'echo before; read -r line; exit 0'], { maxRunAfterDisconnect: '1m' });
      const [{ session_id: id }] = await once(first, 'message');
      await once(first.stdout, 'data');
      first.wsCmd.close(); // the SDK has no word for leaving
      while ((await sprite.listSessions()).find(each => each.id === id).isActive);
      const second = sprite.attachSession(id);
      await once(second, 'spawn');
      second.stdin.write('\n');
      assert.equal(await second.wait(), 0);
    }],

  [['Sprite.listSessions', 'Sprite.killSession', 'Sprite.spawn'],
    async function killing() {
      const sprite = await kit.sprite();
      const command = sprite.spawn('sleep', ['603']);
      await once(command, 'spawn');
      let found;
      while (!found) found = (await sprite.listSessions()).find(each => each.command.endsWith('sleep 603'));
      assert.deepEqual((await all(await sprite.killSession(found.id))).map(each => each.type),
        ['signal', 'exited', 'complete']);
      assert.equal(await command.wait(), 128 + 15);
    }],
];
