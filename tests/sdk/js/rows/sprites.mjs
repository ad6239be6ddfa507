// Sprites: making, finding, changing, restarting and destroying them.

import assert from 'node:assert/strict';
import { refused, until } from '../kit.mjs';

export default (sdk, kit) => [
  [['SpritesClient', 'Sprite', 'SpritesClient.createSprite', 'SpritesClient.getSprite', 'SpritesClient.sprite'],
    async function create() {
      const name = kit.newName();
      const made = await kit.client.createSprite(name, {
        config: { ramMB: 512, cpus: 1 }, environment: { someName: 'kept' }, labels: ['a', 'b'],
        urlSettings: { auth: 'public', privateAccess: 'admins' }, waitForCapacity: true, runtime: 'default',
      });
      assert(made instanceof sdk.Sprite && made.client === kit.client);
      const { createdAt, updatedAt, id, url, version, organizationName, ...rest } = await kit.client.getSprite(name);
      assert(createdAt <= updatedAt && id && url.includes(name) && version && organizationName);
      assert.equal(rest.status, 'running');
      assert.equal(rest.config.ramMB, 512);
      assert.equal(rest.config.cpus, 1);
      assert.deepEqual(rest.environment, { someName: 'kept' });
      assert.deepEqual(rest.labels, ['a', 'b']);
      assert.deepEqual(rest.urlSettings, { auth: 'public', privateAccess: 'admins' });
      assert.equal(kit.client.sprite('no-such').id, undefined);
      await made.delete();
      const older = await kit.client.createSprite(name, { ramMB: 256 }); // a configuration alone, as it was once
      assert.equal(older.config.ramMB, 256);
      await older.delete();
    }],

  [['SpritesClient.listSprites', 'SpritesClient.listAllSprites'],
    async function listing() {
      const prefix = `${kit.newName()}-`;
      const names = [`${prefix}0`, `${prefix}1`];
      for (const name of names) await kit.client.createSprite(name);
      const first = await kit.client.listSprites({ prefix, maxResults: 1, bulkLoad: true });
      assert.deepEqual(first.sprites.map(each => each.name), [names[0]]);
      assert(first.hasMore && first.running >= 2 && first.organizationName);
      const continuationToken = first.nextContinuationToken;
      const last = await kit.client.listSprites({ prefix, maxResults: 100, continuationToken });
      assert.deepEqual(last.sprites.map(each => each.name), [names[1]]);
      assert.equal(last.hasMore, false);
      assert.deepEqual((await kit.client.listAllSprites(prefix)).map(each => each.name), names);
      for (const name of names) await kit.client.deleteSprite(name);
      assert.deepEqual(await kit.client.listAllSprites(prefix), []);
    }],

  [['SpritesClient.watchSprites', 'SpriteListStream', 'SpriteListStream.next', 'SpriteListStream.close',
    'SpriteListStream.processAll'],
    async function watching() {
      const name = kit.newName();
      const stream = await kit.client.watchSprites({ prefix: name, maxResults: 10 });
      const made = await kit.client.createSprite(name);
      const running = await until(stream, event => event.name === name && event.status === 'running');
      assert(running.timestamp instanceof Date && running.organization.running > 0 && running.lastRunningAt);
      await kit.api('POST', `/v1/sprites/${name}/sleep`);
      const cold = await until(stream, event => event.name === name && event.status === 'cold');
      assert(cold.organization.cold > 0);
      stream.close();
      assert.equal(await stream.next(), null);
      const again = await kit.client.watchSprites({ prefix: name });
      const seen = [];
      await again.processAll(event => {
        seen.push(event.name);
        again.close();
      });
      assert.deepEqual(seen, [name]);
      await made.delete();
    }],

  [['SpritesClient.updateSprite', 'Sprite.update', 'SpritesClient.updateURLSettings', 'Sprite.updateURLSettings'],
    async function update() {
      const made = await kit.made({ labels: ['a'] });
      const changed = await kit.client.updateSprite(made.name, { labels: ['b', 'c'] });
      assert.deepEqual([changed.labels, changed.urlSettings.auth], [['b', 'c'], 'sprite']);
      assert.equal((await made.update({ urlSettings: { auth: 'public' } })).urlSettings.auth, 'public');
      assert.deepEqual((await made.update({ labels: [] })).labels, []);
      await kit.client.updateURLSettings(made.name, { auth: 'sprite' });
      await made.updateURLSettings({ privateAccess: 'org_users' });
      const { urlSettings } = await kit.client.getSprite(made.name);
      assert.deepEqual(urlSettings, { auth: 'sprite', privateAccess: 'org_users' });
    }],

  [['SpritesClient.restartSprite', 'Sprite.restart', 'SpritesClient.checkSprite', 'Sprite.check'],
    async function restart() {
      const made = await kit.made();
      await made.execFile('sh', ['-c', 'echo stays > file; echo goes > /run/lock/file']);
      for (const way of [() => made.restart(), () => kit.client.restartSprite(made.name)]) {
        const { spriteName, machineId, message } = await way();
        assert.deepEqual([spriteName, machineId], [made.name, made.id]);
        assert(message.includes(made.name));
      }
      assert.equal((await made.execFile('sh', ['-c', 'cat file; ls /run/lock'])).stdout, 'stays\n');
      for (const way of [() => made.check(), () => kit.client.checkSprite(made.name)]) {
        const { spriteName, spriteId, status, checkedAt, elapsed, reason } = await way();
        assert.deepEqual([spriteName, spriteId, status, reason], [made.name, made.id, 'healthy', undefined]);
        assert(checkedAt instanceof Date && !Number.isNaN(checkedAt.getTime()) && elapsed);
      }
    }],

  [['SpritesClient.upgradeSprite', 'Sprite.upgrade'],
    async function upgrade() {
      const made = await kit.made();
      await made.upgrade();
      await kit.client.upgradeSprite(made.name);
      assert.equal((await made.execFile('true')).exitCode, 0);
    }],

  [['SpritesClient.deleteSprite', 'Sprite.delete', 'Sprite.destroy'],
    async function destroy() {
      for (const way of [made => kit.client.deleteSprite(made.name), made => made.delete(), made => made.destroy()]) {
        const made = await kit.made();
        await way(made);
        for (const error of [await refused(way(made)), await refused(kit.client.getSprite(made.name))]) {
          assert(error instanceof sdk.APIError);
          assert.equal(error.statusCode, 404);
        }
      }
    }],
];
