// Services.

import assert from 'node:assert/strict';
import { all, refused } from '../kit.mjs';

const names = (...each) => each.map(name => `Sprite.${name}`);

// The kinds of events, of which the last is always `complete`.
const kinds = async stream => {
  const heard = (await all(stream)).map(event => event.type);
  assert.equal(heard.at(-1), 'complete');
  return heard;
};

export default (sdk, kit) => [
  [[...names('createService', 'listServices', 'getService', 'startService', 'stopService', 'restartService',
    'getServiceLogs', 'signalService', 'deleteService'), 'ServiceLogStream', 'ServiceLogStream.next',
    'ServiceLogStream.processAll', 'ServiceLogStream.close'],
    async function services() {
      const sprite = await kit.made();
      // What ends is watched no longer, whatever the duration.
      const once = { cmd: 'sh', args: ['-c', 'echo up; exit 3'] };
      const events = await all(await sprite.createService('once', once, '60s'));
      assert.deepEqual(events.filter(event => event.type === 'stdout').map(event => event.data), ['up']);
      assert.deepEqual(events.filter(event => event.type === 'exit').map(event => event.exitCode), [3]);
      assert(events.at(-1).logFiles.combined.startsWith('/.sprite/logs/services/'));
      assert.equal(typeof events[0].timestamp, 'number');
      await sprite.deleteService('once');
      await kinds(await sprite.createService('base', { cmd: 'sleep', args: ['600'] }, '100ms'));
      const config = {
        cmd: 'sh', args: ['-c', 'echo "$A"; pwd; sleep 600'], needs: ['base'], httpPort: 8080, env: { A: 'b' }, dir: '/usr',
      };
      await kinds(await sprite.createService('web', config, '100ms'));
      const { state, ...web } = await sprite.getService('web');
      assert.deepEqual(web, { name: 'web', ...config });
      assert.deepEqual([state.name, state.status, typeof state.pid], ['web', 'running', 'number']);
      assert.deepEqual((await sprite.listServices()).map(each => each.name).sort(), ['base', 'web']);
      assert.match((await refused(sprite.createService('other', { cmd: 'sh', httpPort: 8080 }))).message, /conflict/);
      const logs = await sprite.getServiceLogs('web', { lines: 10, duration: '60s' });
      const first = await logs.next();
      assert.deepEqual([first.type, first.data], ['stdout', 'b']);
      logs.close();
      assert((await kinds(await sprite.restartService('web', '100ms'))).includes('started'));
      await sprite.signalService('web', 'SIGCONT');
      assert.match((await refused(sprite.signalService('web', 'NO-SUCH'))).message, /Invalid signal/);
      const stopped = [];
      await (await sprite.stopService('web', '5s')).processAll(event => stopped.push(event.type));
      assert.deepEqual([stopped[0], ...stopped.slice(-2)], ['stopping', 'stopped', 'complete']);
      assert.equal((await sprite.getService('web')).state.status, 'stopped');
      assert.match((await refused(sprite.stopService('web'))).message, /not running/);
      assert((await kinds(await sprite.startService('web', '100ms'))).includes('started'));
      await sprite.deleteService('web');
      assert.match((await refused(sprite.getService('web'))).message, /not found/);
    }],
];
