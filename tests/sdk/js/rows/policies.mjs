// Policies, but of the network.

import assert from 'node:assert/strict';

const names = (...each) => each.map(name => `Sprite.${name}`);

export default (sdk, kit) => [
  [names('getPrivilegesPolicy', 'updatePrivilegesPolicy', 'deletePrivilegesPolicy'),
    async function privileges() {
      const sprite = await kit.made();
      const without = await sprite.getPrivilegesPolicy();
      await sprite.updatePrivilegesPolicy({ profile: 'minimal', noNewPrivileges: true });
      const { profile, noNewPrivileges } = await sprite.getPrivilegesPolicy();
      assert.deepEqual([profile, noNewPrivileges], ['minimal', true]);
      await sprite.deletePrivilegesPolicy();
      assert.deepEqual(await sprite.getPrivilegesPolicy(), without);
    }],

  [names('getResourcesPolicy', 'updateResourcesPolicy', 'deleteResourcesPolicy'),
    async function resources() {
      const sprite = await kit.made();
      const without = await sprite.getResourcesPolicy();
      await sprite.updateResourcesPolicy({ memory: { limitMB: 300 } });
      assert.equal((await sprite.getResourcesPolicy()).memory.limitMB, 300);
      assert.equal((await kit.client.getSprite(sprite.name)).config.ramMB, 300);
      await sprite.deleteResourcesPolicy();
      assert.deepEqual(await sprite.getResourcesPolicy(), without);
    }],
];
