// Control connections, and commands by them.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { refused } from '../kit.mjs';

export default (sdk, kit) => [
  [['Sprite.useControlMode', 'Sprite.getControlConnection', 'Sprite.hasControlConnection',
    'Sprite.closeControlConnection', 'Sprite.execFile', 'Sprite.exec'],
    async function controlMode() {
      assert.equal((await kit.sprite()).useControlMode(), false);
      const sprite = await kit.sprite({ controlMode: true });
      assert.equal(sprite.useControlMode(), true);
      assert.equal(sprite.hasControlConnection(), false);
      assert.deepEqual(await sprite.execFile('sh', ['-c', 'cat; echo "$A" >&2; pwd'], { env: { A: 'b' }, cwd: '/usr' }),
        { stdout: '/usr\n', stderr: 'b\n', exitCode: 0 });
      assert.equal(sprite.hasControlConnection(), true);
      assert.equal((await sprite.exec('echo again')).stdout, 'again\n');
      const connection = await sprite.getControlConnection();
      const operation = await connection.startOp('exec', { cmd: ['sh', '-c', 'exit 4'] });
      assert.equal(await operation.wait(), 4);
      sprite.closeControlConnection();
      assert.equal(sprite.hasControlConnection(), false);
    }],

  [['Sprite.execFile'],
    async function whatFailsInControlModeRunsTwice() {
      // The SDK takes any exit but 0 for a failed connection and runs the command again on one of its own.
      const sprite = await kit.sprite({ controlMode: true });
      const error = await refused(sprite.execFile('sh', ['-c', 'echo x >> twice; exit 7']));
      assert.equal(error.exitCode, 7);
      assert.equal((await sprite.execFile('sh', ['-c', 'cat twice; rm twice'])).stdout, 'x\nx\n');
      sprite.closeControlConnection();
    }],

  [['ControlConnection', ...['connect', 'startOp', 'isActive', 'setActive', 'clearOpConn', 'sendData', 'isClosed', 'close']
    .map(each => `ControlConnection.${each}`), 'OpConn', ...['write', 'sendEOF', 'handleData', 'handleText', 'complete',
    'wait', 'isClosed', 'getExitCode'].map(each => `OpConn.${each}`)],
    async function oneAfterTheOther() {
      const connection = new sdk.ControlConnection(await kit.sprite());
      await connection.connect();
      assert.match((await refused(connection.connect())).message, /Already connected/);
      for (const code of [0, 7]) {
        const cmd = ['sh', '-c', `cat; echo "$A" >&2; pwd; exit ${code}`];
        const operation = await connection.startOp('exec', { cmd, env: ['A=b'], dir: '/usr', stdin: true });
        assert.match((await refused(connection.startOp('exec', { cmd }))).message, /in progress/);
        let out = '';
        let err = '';
        const heard = [];
        operation.on('stdout', data => { out += data; });
        operation.on('stderr', data => { err += data; });
        operation.on('message', message => heard.push(message.type));
        operation.write(Buffer.from('one '));
        operation.write(Buffer.from('two\n'));
        assert.equal(operation.isClosed(), false);
        operation.sendEOF();
        assert.equal(await operation.wait(), code);
        assert.deepEqual([out, err, operation.getExitCode(), operation.isClosed()], ['one two\n/usr\n', 'b\n', code, true]);
        assert.deepEqual(heard, ['session_info']);
      }
      connection.setActive(true); // what the SDK's pool keeps of a connection
      assert.equal(connection.isActive(), true);
      connection.clearOpConn();
      assert.equal(connection.isClosed(), false);
      connection.close();
      assert.equal(connection.isClosed(), true);
    }],

  [['OpConn.resize', 'OpConn.signal', 'OpConn.close', 'ControlConnection.close'],
    async function terminalOfAnOperation() {
      const connection = new sdk.ControlConnection(await kit.sprite());
      await connection.connect();
      const script = "trap 'stty size' WINCH; trap 'exit 6' USR1; echo ready; while :; do sleep 0.05; done";
      const operation = await connection.startOp('exec', { cmd: ['sh', '-c', script], tty: true, rows: 24, cols: 80 });
      let said = '';
      let step = 0;
      operation.on('stdout', data => {
        said += data;
        if (step === 0 && said.includes('ready')) step = (operation.resize(77, 33), 1);
        if (step === 1 && said.includes('33 77\r\n')) step = (operation.signal('USR1'), 2);
      });
      assert.equal(await operation.wait(), 6);
      const left = await connection.startOp('exec', { cmd: ['sleep', '600'] });
      left.close();
      assert.deepEqual([left.isClosed(), left.getExitCode()], [true, -1]);
      connection.close();
    }],

  [['ControlConnection.startOp', 'OpConn.complete'],
    async function whatCannotBeBegun() {
      const connection = new sdk.ControlConnection(await kit.sprite());
      await connection.connect();
      const operation = await connection.startOp('no-such-operation');
      const [error] = await once(operation, 'error');
      assert.match(error.message, /no-such-operation/);
      const missing = await connection.startOp('exec', { cmd: ['no-such-program'] });
      assert.equal(await missing.wait(), 127);
      connection.close();
    }],
];
