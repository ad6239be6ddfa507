// Files.

import assert from 'node:assert/strict';
import { refused, until } from '../kit.mjs';

const names = (...each) => each.map(name => `SpriteFilesystem.${name}`);

export default (sdk, kit) => {
  // A file system below a directory of the row's own, and what a script says of that.
  const place = async () => {
    const sprite = await kit.sprite();
    const top = `/home/sprite/${kit.newName()}`;
    return [sprite.filesystem(top), async script => (await sprite.execFile('sh', ['-c', script], { cwd: top })).stdout];
  };
  return [
    [['SpriteFilesystem', 'Sprite.filesystem', ...names('writeFile', 'readFile', 'appendFile', 'readJSON', 'writeJSON')],
      async function contents() {
        const [fs, said] = await place();
        await fs.writeFile('deep/er/text', 'grüße\n', { mode: 0o600 });
        assert.equal(await fs.readFile('deep/er/text', 'utf8'), 'grüße\n');
        assert.deepEqual(await fs.readFile('deep/er/text'), Buffer.from('grüße\n'));
        assert.equal(await said('stat -c "%a %U" deep/er/text deep'), '600 sprite\n755 sprite\n');
        const data = Buffer.alloc(3 << 20, 'data');
        await fs.writeFile('data', data);
        assert(data.equals(await fs.readFile('data')));
        await fs.appendFile('log', 'one\n');
        await fs.appendFile('log', Buffer.from('two\n'));
        assert.equal(await fs.readFile('log', 'utf8'), 'one\ntwo\n');
        await fs.writeJSON('some.json', { a: [1, 'ü'] }, { spaces: 2 });
        assert.deepEqual(await fs.readJSON('some.json'), { a: [1, 'ü'] });
        assert.match(await (await kit.sprite()).filesystem().readFile('etc/passwd', 'utf8'), /^root:/);
      }],

    [names('mkdir', 'readdir', 'rm', 'stat', 'exists'),
      async function directories() {
        const [fs, said] = await place();
        await fs.mkdir('.', { recursive: true });
        assert.equal(await said('stat -c %a .; ls -A'), '755\n');
        await fs.mkdir('a/b', { recursive: true });
        await fs.mkdir('c', { mode: 0o700 });
        await fs.writeFile('a/b/file.txt', 'x');
        await fs.writeFile('a/script.sh', 'x', { mode: 0o755 });
        await said('ln -s file.txt a/b/link');
        assert.deepEqual(await fs.readdir('.'), ['a', 'c']);
        assert.deepEqual(await fs.readdir('a', { recursive: true }), ['b', 'file.txt', 'link', 'script.sh']);
        assert.deepEqual(await fs.readdir('a', { recursive: true, pattern: '*.txt' }), ['file.txt']);
        const kinds = (await fs.readdir('a/b', { withFileTypes: true })).map(each =>
          [each.name, each.isFile(), each.isDirectory(), each.isSymbolicLink()]);
        assert.deepEqual(kinds, [['file.txt', true, false, false], ['link', false, false, true]]);
        const stat = await fs.stat('a/script.sh');
        assert.deepEqual([stat.size, stat.mode, stat.isFile(), stat.isDirectory()], [1, 0o755, true, false]);
        assert(Math.abs(Date.now() - stat.mtime) < 24 * 3600 * 1000);
        // The SDK asks for a listing and takes its first entry: a directory is what its first child is, or absent.
        assert.equal((await fs.stat('.')).isDirectory(), true);
        assert.deepEqual([await fs.exists('a/b'), await fs.exists('c'), await fs.exists('nosuch')], [true, false, false]);
        assert.equal((await refused(fs.rm('a'))).code, 'ENOTEMPTY');
        await fs.rm('a', { recursive: true });
        await fs.rm('c');
        await fs.rm('nosuch', { force: true });
        assert.deepEqual(await fs.readdir('.'), []);
      }],

    [names('rename', 'copyFile', 'chmod', 'chown'),
      async function changes() {
        const [fs, said] = await place();
        await fs.writeFile('d/one', 'one');
        await fs.chmod('d/one', 0o750);
        await fs.rename('d/one', 'd/two');
        await fs.copyFile('d', 'e', { recursive: true, preserveAttrs: true });
        await fs.copyFile('d/two', 'copy');
        assert.equal(await said('cat e/two copy; stat -c %a e/two; ls d'), 'oneone750\ntwo\n');
        await fs.chmod('e', 0o700, { recursive: true });
        assert.equal(await said('stat -c %a e/two'), '700\n');
        await fs.chown('copy', { uid: 'root', gid: 0, asRoot: true });
        await fs.chown('e', { uid: 1234, recursive: true, asRoot: true });
        assert.equal(await said('stat -c "%U %G" copy; stat -c %u e; sudo stat -c %u e/two'), 'root root\n1234\n1234\n');
        assert.equal((await refused(fs.chown('copy', { uid: 'root' }))).code, 'EPERM');
        await fs.rename('copy', 'moved', { asRoot: true });
        await fs.chmod('moved', 0o604, { asRoot: true });
        await fs.copyFile('moved', 'again', { asRoot: true });
        await fs.rm('e', { recursive: true, asRoot: true });
        assert.equal(await said('ls; stat -c %a moved'), 'again\nd\nmoved\n604\n');
      }],

    [['FilesystemWatcher', 'FilesystemWatcher.connect', 'FilesystemWatcher.next', 'FilesystemWatcher.close',
      'FilesystemWatcher.isClosed', ...names('watch')],
      async function watching() {
        const [fs, said] = await place();
        await fs.mkdir('sub', { recursive: true });
        const watcher = await fs.watch(['.'], { recursive: true });
        assert(watcher instanceof sdk.FilesystemWatcher);
        assert.equal((await watcher.next()).type, 'subscribed');
        await fs.writeFile('sub/file', 'four');
        const written = await until(watcher, event => event.event === 'write' || event.event === 'create');
        assert.match(written.path, /\/sub\/file$/);
        assert.equal(written.isDir, false);
        await said('rm sub/file');
        await until(watcher, event => event.event === 'remove' && event.path.endsWith('/sub/file'));
        assert.equal(watcher.isClosed(), false);
        watcher.close();
        assert.equal(watcher.isClosed(), true);
      }],

    [['FilesystemError', ...names('readFile', 'writeFile', 'rm', 'stat', 'readdir')],
      async function errors() {
        const [fs] = await place();
        await fs.writeFile('full/file', 'x');
        for (const [attempt, code] of [
          [() => fs.readFile('nosuch'), 'ENOENT'],
          [() => fs.stat('nosuch'), 'ENOENT'],
          [() => fs.rm('nosuch'), 'ENOENT'],
          [() => fs.readdir('nosuch'), 'ENOENT'],
          [() => fs.readFile('full'), 'EISDIR'],
          [() => fs.writeFile('full', 'x'), 'EISDIR'],
          [() => fs.readFile('full/file/below'), 'ENOTDIR'],
          [() => fs.readFile('/etc/shadow'), 'EACCES'],
          [() => fs.rm('full'), 'ENOTEMPTY'],
          [() => fs.rename('full', 'full/in'), 'EINVAL'],
        ]) {
          const error = await refused(attempt());
          assert(error instanceof sdk.FilesystemError);
          assert.equal(error.code, code);
        }
        assert.equal((await refused(fs.stat('nosuch'))).path.endsWith('/nosuch'), true);
      }],
  ];
};
