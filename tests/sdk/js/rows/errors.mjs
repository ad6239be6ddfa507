// Errors, and constants.

import assert from 'node:assert/strict';
import { refused } from '../kit.mjs';

const questions = ['isRateLimitError', 'isCreationRateLimited', 'isConcurrentLimitExceeded', 'getRetryAfterSeconds'];

export default (sdk, kit) => [
  [['APIError', 'parseAPIError', ...questions.map(each => `APIError.${each}`), 'ERR_CODE_CREATION_RATE_LIMITED',
    'ERR_CODE_CONCURRENT_LIMIT_EXCEEDED'],
    async function refusals() {
      const { name } = await kit.sprite();
      for (const [attempt, status, code] of [
        [() => kit.client.getSprite('no-such'), 404, 'sprite_not_found'],
        [() => kit.client.createSprite(name), 409, 'sprite_exists'],
        [() => kit.client.createSprite('No Name'), 422, 'invalid'],
        [() => kit.newClient({ token: `${kit.token}x` }).getSprite(name), 401, 'unauthorized'],
        [() => kit.client.sprite('no-such').execFileHTTP('true'), 404, 'sprite_not_found'],
      ]) {
        const error = await refused(attempt());
        assert(error instanceof sdk.APIError);
        assert.deepEqual([error.statusCode, error.errorCode], [status, code]);
        assert.deepEqual(questions.map(each => error[each]()), [false, false, false, undefined]);
        assert(![sdk.ERR_CODE_CREATION_RATE_LIMITED, sdk.ERR_CODE_CONCURRENT_LIMIT_EXCEEDED].includes(error.errorCode));
      }
      const answer = await kit.api('GET', '/v1/sprites/no-such');
      const parsed = sdk.parseAPIError(answer.status, await answer.text(), Object.fromEntries(answer.headers));
      assert.deepEqual([parsed.statusCode, parsed.errorCode], [404, 'sprite_not_found']);
    }],

  [['SpritesClient.getSprite', 'Sprite.execFile'],
    async function nobodyThere() {
      const away = kit.newClient({ baseURL: 'http://127.0.0.1:9' });
      assert.match((await refused(away.getSprite('a'))).message, /Network error/);
      assert.match((await refused(away.sprite('a').execFile('true'))).message, /WebSocket/);
      // A WebSocket that is refused tells no status: the SDK cannot say why.
      assert.match((await refused(kit.client.sprite('no-such').execFile('true'))).message, /WebSocket/);
    }],

  [['StreamID'],
    async function streams() {
      assert.deepEqual([sdk.StreamID.Stdin, sdk.StreamID.Stdout, sdk.StreamID.Stderr, sdk.StreamID.Exit,
        sdk.StreamID.StdinEOF], [0, 1, 2, 3, 4]);
    }],
];
