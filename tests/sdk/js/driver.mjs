// The official JavaScript SDK against a real node: every public name of it.
//
//   node driver.mjs PACKAGE [ROW]
//
// PACKAGE is the directory of @fly/sprites; with ROW, only rows whose name has that in it. Where the node is and a token
// for it are in BALLPOINT_URL and BALLPOINT_TOKEN. Prints a line of JSON, {name, ok, error}, for each row.

import { pathToFileURL } from 'node:url';
import { Kit } from './kit.mjs';
import { publicNames, run, watch } from './table.mjs';
import checkpoints from './rows/checkpoints.mjs';
import commands from './rows/commands.mjs';
import control from './rows/control.mjs';
import errors from './rows/errors.mjs';
import files from './rows/files.mjs';
import policies from './rows/policies.mjs';
import ports from './rows/ports.mjs';
import services from './rows/services.mjs';
import sprites from './rows/sprites.mjs';

// Names that no row uses.
const EXCEPTED = new Set([
  'Sprite.getNetworkPolicy', 'Sprite.updateNetworkPolicy', // network policies come later
  'SpritesClient.createToken', // asks another host, whatever the client's base URL is
]);

const [directory, only] = process.argv.slice(2);
const sdk = await import(pathToFileURL(`${directory}/dist/index.js`).href);
const used = new Set();
const names = await publicNames(sdk, `${directory}/dist`);
watch(sdk, used);
const kit = new Kit(sdk, process.env.BALLPOINT_URL, process.env.BALLPOINT_TOKEN);
try {
  const rooms = [sprites, commands, control, files, checkpoints, services, policies, ports, errors];
  const rows = rooms.flatMap(room => room(sdk, kit));
  await run(rows, { names, excepted: EXCEPTED, used, only });
} finally {
  await kit.close();
}
process.exit(0); // what a row that failed left open keeps nobody
