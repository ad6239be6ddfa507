// Checkpoints.

import assert from 'node:assert/strict';
import { all, refused } from '../kit.mjs';

const streams = ['CheckpointStream', 'RestoreStream'];

export default (sdk, kit) => [
  [['Sprite.createCheckpoint', 'Sprite.listCheckpoints', 'Sprite.getCheckpoint', 'Sprite.restoreCheckpoint', ...streams,
    ...streams.flatMap(each => [`${each}.next`, `${each}.processAll`, `${each}.close`])],
    async function thereAndBack() {
      const sprite = await kit.made();
      const write = text => sprite.execFile('sh', ['-c', `echo ${text} > file`]);
      await write('one');
      const made = await all(await sprite.createCheckpoint('the first'));
      assert.equal(made.at(-1).type, 'complete');
      assert.match(made.at(-1).data, /v0/);
      await write('two');
      const steps = [];
      await (await sprite.createCheckpoint()).processAll(step => steps.push(step.type));
      assert.equal(steps.at(-1), 'complete');
      const [first, second] = await sprite.listCheckpoints();
      assert.deepEqual([first.id, first.comment, first.history, first.isAuto], ['v0', 'the first', [], false]);
      assert.deepEqual([second.id, second.history, second.sourceId, second.health], ['v1', ['v0'], 'v0', '']);
      assert(first.createTime < second.createTime);
      assert.deepEqual((await sprite.listCheckpoints('v1')).map(each => each.id), ['v1']);
      assert.deepEqual(await sprite.getCheckpoint('v0'), first);
      const restoring = await sprite.restoreCheckpoint('v0');
      assert.equal((await restoring.next()).type, 'info');
      const rest = [];
      await restoring.processAll(step => rest.push(step.type));
      restoring.close();
      assert.equal(rest.at(-1), 'complete');
      assert.equal((await sprite.execFile('cat', ['file'])).stdout, 'one\n');
      assert.match((await refused(sprite.getCheckpoint('v7'))).message, /not found/);
      assert.match((await refused(sprite.restoreCheckpoint('v7'))).message, /404/);
    }],
];
