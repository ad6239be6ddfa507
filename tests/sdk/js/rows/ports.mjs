// Ports of a sprite.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect } from 'node:net';
import { text } from 'node:stream/consumers';
import { until } from '../kit.mjs';

// Answers each connection with what it was sent, doubled, once the client has ended or sent a line.
const SERVER = `
import socket, sys, threading
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
def serve(one):
    line = one.makefile("rb").readline()
    one.sendall(line * 2)
    one.close()
while True:
    threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()
`;

export default (sdk, kit) => {
  // A server in the shared sprite: its port, and how it is ended.
  const server = async () => {
    const command = (await kit.sprite()).spawn('python3', ['-c', SERVER]);
    const [line] = await once(command.stdout, 'data');
    return [Number(line), async () => {
      command.kill('KILL');
      await command.wait();
    }];
  };
  const ask = async session => {
    const [, port] = session.localAddr().split(':');
    const socket = connect(Number(port), 'localhost');
    socket.write('line\n');
    return text(socket);
  };
  return [
    [['Sprite.watchPorts', 'PortWatcher', 'PortWatcher.connect', 'PortWatcher.next', 'PortWatcher.close',
      'PortWatcher.isClosed'],
      async function watching() {
        const watcher = await (await kit.sprite()).watchPorts();
        assert.equal((await watcher.next()).type, 'port_list');
        const [port, end] = await server();
        const opened = await until(watcher, event => event.type === 'port_opened' && event.port === port);
        assert.deepEqual([opened.address, typeof opened.pid], ['127.0.0.1', 'number']);
        await end();
        await until(watcher, event => event.type === 'port_closed' && event.port === port);
        assert.equal(watcher.isClosed(), false);
        watcher.close();
        assert.equal(watcher.isClosed(), true);
      }],

    [['Sprite.proxyPort', 'Sprite.proxyPorts', 'proxyPort', 'proxyPorts', 'ProxySession', 'ProxySession.start',
      'ProxySession.localAddr', 'ProxySession.close', 'ProxySession.wait', 'ProxyManager', 'ProxyManager.addSession',
      'ProxyManager.closeAll', 'ProxyManager.waitAll'],
      async function proxies() {
        const sprite = await kit.sprite();
        const [port, end] = await server();
        const mapping = { localPort: 0, remotePort: port };
        const alone = new sdk.ProxySession(kit.client, sprite.name, mapping);
        await alone.start();
        const manager = new sdk.ProxyManager();
        const sessions = [
          alone,
          await sprite.proxyPort(0, port),
          await sdk.proxyPort(kit.client, sprite.name, 0, port, '127.0.0.1'),
          ...await sprite.proxyPorts([mapping, { ...mapping, remoteHost: 'localhost' }]),
          ...await sdk.proxyPorts(kit.client, sprite.name, [mapping]),
        ];
        for (const session of sessions) {
          assert.equal(await ask(session), 'line\nline\n');
          manager.addSession(session);
        }
        await end();
        assert.equal(await refusal(ask(alone)), true); // nobody listens inside any more
        const ended = alone.wait();
        const all = manager.waitAll();
        manager.closeAll();
        await Promise.all([ended, all]);
        assert.equal(alone.localAddr(), null);
        alone.close();
      }],
  ];
};

// Whether a local connection ends without a word, by a reset or not: so the SDK says that there is none.
async function refusal(promise) {
  try {
    return await promise === '';
  } catch (error) {
    return error.code === 'ECONNRESET';
  }
}
