// What rows have to work with.

import { randomBytes } from 'node:crypto';

export class Kit {
  #made = new Set();
  #shared;

  constructor(sdk, url, token) {
    this.sdk = sdk;
    this.url = url;
    this.token = token;
    this.client = this.newClient();
  }

  newClient(options = {}) {
    return new this.sdk.SpritesClient(options.token ?? this.token, { baseURL: this.url, ...options });
  }

  newName() {
    return `t-${randomBytes(6).toString('hex')}`;
  }

  // A sprite of the row's own. It goes with the run.
  async made(options) {
    const name = this.newName();
    this.#made.add(name);
    return this.client.createSprite(name, options);
  }

  // The sprite that rows share, so that they clean up what they leave in it; as a client with these options sees it.
  async sprite(options) {
    this.#shared ??= (await this.made()).name;
    return (options ? this.newClient(options) : this.client).sprite(this.#shared);
  }

  // An answer of the API itself.
  async api(method, path, body) {
    const headers = { Authorization: `Bearer ${this.token}` };
    return fetch(`${this.url}${path}`, { method, headers, body: body && JSON.stringify(body) });
  }

  async close() {
    for (const name of this.#made) await this.api('DELETE', `/v1/sprites/${name}`);
  }
}

// What a promise is refused with.
export async function refused(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error('it was not refused');
}

// All of an asynchronous iterable.
export async function all(iterable) {
  const found = [];
  for await (const each of iterable) found.push(each);
  return found;
}

// The next event of a watcher that `wanted` says yes to.
export async function until(watcher, wanted) {
  for (;;) {
    const event = await watcher.next();
    if (event === null) throw new Error('the watch has ended');
    if (wanted(event)) return event;
  }
}
