// The dashboard of the service at SERVICE_URL in a browser, while calls, a job and a lease are under way.

'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { after, before, test } = require('node:test');

const { WIDE, NARROW, launch, open, signIn, live, picture } = require('./dashboard.cjs');

const { ADMIN_KEY, JOB_ID, PICTURES } = process.env;
const AXE = fs.readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');

const PAGES = {
  overview: '/dashboard',
  accounts: '/dashboard/accounts',
  jobs: '/dashboard/jobs',
  job: `/dashboard/jobs/${JOB_ID}`,
  semaphores: '/dashboard/semaphores',
  semaphore: '/dashboard/semaphores/images',
  replicas: '/dashboard/replicas',
  failures: '/dashboard/failures',
  playground: '/dashboard/playground?kind=structured',
};

let browser;
let page;
let errors;

before(async () => {
  browser = await launch();
  ({ page, errors } = await open(browser));
  await signIn(page);
});

after(async () => {
  await browser?.close();
});

// Runs axe on a page and fails for what it finds serious.
async function check(target, what) {
  // Through the debugger, which the content security policy does not restrict.
  await target.evaluate(AXE);
  const { violations } = await target.evaluate(() => axe.run(document));
  const serious = violations.filter(({ impact }) => ['serious', 'critical'].includes(impact));
  const found = serious.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(' ')}`);
  assert.deepEqual(found, [], what);
}

async function fitsItsWidth(target, what) {
  const [content, width] = await target.evaluate(() => {
    return [document.documentElement.scrollWidth, document.documentElement.clientWidth];
  });
  assert.ok(content <= width, `${what}: ${content} of ${width} pixels`);
}

async function keep(name, most) {
  if (!PICTURES) return;
  fs.mkdirSync(PICTURES, { recursive: true });
  fs.writeFileSync(path.join(PICTURES, `${name}.webp`), await picture(page, most));
}

// Clicks a button that sends a form, and waits for what the next page says.
async function act(button, says) {
  await button.click();
  await page.getByRole('status').filter({ hasText: says }).waitFor();
  await live(page);
}

// Opens a question and answers it.
async function confirm(scope, question, answer, says) {
  await scope.locator('summary', { hasText: question }).click();
  await act(scope.getByRole('button', { name: answer }), says);
}

test('a wrong key is refused and the login is accessible', async () => {
  const { page: login } = await open(browser);
  await login.goto('/dashboard/jobs');
  await login.getByLabel('Admin key').fill('wrong');
  await login.getByRole('button', { name: 'Sign in' }).click();
  await login.getByRole('alert').filter({ hasText: 'not the admin key' }).waitFor();
  for (const colorScheme of ['light', 'dark']) {
    await login.emulateMedia({ colorScheme });
    await check(login, `login ${colorScheme}`);
  }
  await login.getByLabel('Admin key').fill(ADMIN_KEY);
  await login.keyboard.press('Enter');
  await login.getByRole('heading', { level: 1, name: 'Jobs' }).waitFor();
  await login.context().close();
});

for (const [name, address] of Object.entries(PAGES)) {
  test(`the page ${name} is live, accessible and fits wide and narrow screens`, async () => {
    await page.goto(address);
    if (name !== 'playground') await live(page);
    for (const colorScheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
      for (const viewport of [WIDE, NARROW]) {
        await page.setViewportSize(viewport);
        const what = `${name} ${viewport.width} ${colorScheme}`;
        await fitsItsWidth(page, what);
        await check(page, what);
        await keep(`${name}-${viewport.width}-${colorScheme}`, viewport === WIDE ? 1400 : 1700);
      }
    }
    await page.emulateMedia({ colorScheme: 'light' });
    await page.setViewportSize(WIDE);
    assert.deepEqual(errors, []);
  });
}

test('the keyboard reaches the content, the pages and every action', async () => {
  await page.goto(PAGES.job);
  await live(page);
  await page.keyboard.press('Tab');
  const focused = () => page.evaluate(() => document.activeElement.textContent.trim());
  assert.equal(await focused(), 'Skip to content');
  await page.keyboard.press('Enter');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'main');
  // From the content to the question behind the last action, which Escape closes.
  for (let presses = 0; (await focused()) !== 'Delete…'; presses += 1) {
    assert.ok(presses < 30, 'the last action is not reached');
    await page.keyboard.press('Tab');
  }
  await page.keyboard.press('Enter');
  await page.locator('details.confirm[open]').waitFor();
  await page.keyboard.press('Tab');
  assert.equal(await focused(), 'Delete the job');
  await page.keyboard.press('Escape');
  assert.equal(await page.locator('details.confirm[open]').count(), 0);
  assert.equal(await focused(), 'Delete…');
  // What has the focus shows it.
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.equal(outline, 'solid');
});

test('the focus and an open question survive an update', async () => {
  await page.goto(PAGES.job);
  await live(page);
  const cancel = page.locator('summary', { hasText: 'Delete…' });
  await cancel.focus();
  await page.keyboard.press('Enter');
  const progress = page.locator('#summary .progress .sub');
  const shown = await progress.textContent();
  // The job goes on.
  await page.waitForFunction(
    (before) => document.querySelector('#summary .progress .sub').textContent !== before, shown,
  );
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Delete…');
  assert.equal(await page.locator('details.confirm[open]').count(), 1);
});

test('a question stays the same when other actions appear', async () => {
  await page.goto(PAGES.job);
  await live(page);
  const question = page.locator('summary', { hasText: 'Delete…' });
  await question.click();
  // Another page pauses the job, so that other buttons are shown.
  const other = await page.context().newPage();
  await other.goto(PAGES.job);
  await other.getByRole('button', { name: 'Pause', exact: true }).click();
  await page.getByRole('button', { name: 'Resume', exact: true }).waitFor();
  await other.locator('summary', { hasText: 'Cancel…' }).waitFor();
  assert.ok(await page.getByRole('button', { name: 'Delete the job' }).isVisible());
  assert.equal(await page.locator('details.confirm[open]').count(), 1);
  await other.getByRole('button', { name: 'Resume', exact: true }).click();
  await page.getByRole('button', { name: 'Pause', exact: true }).waitFor();
  assert.ok(await page.getByRole('button', { name: 'Delete the job' }).isVisible());
  await other.close();
});

test('a job is paused, resumed, cancelled, retried, downloaded and deleted', async () => {
  await page.goto(PAGES.job);
  const button = (name) => page.getByRole('button', { name, exact: true });
  await act(button('Pause'), 'The job is paused.');
  assert.ok(!page.url().includes('done='), 'a reload does not say it again');
  await act(button('Resume'), 'The job goes on.');
  await confirm(page, 'Cancel…', 'Cancel the job', 'The job is cancelled.');
  const [download] = await Promise.all([
    page.waitForEvent('download'),
    page.getByRole('link', { name: 'Download results' }).click(),
  ]);
  assert.equal(download.suggestedFilename(), `${JOB_ID}-results.jsonl`);
  const lines = fs.readFileSync(await download.path(), 'utf8').trim().split('\n');
  assert.ok(lines.length > 0 && lines.every((line) => JSON.parse(line)));
  await act(button('Send the rest'), 'The job goes on.');
  await confirm(page, 'Cancel…', 'Cancel the job', 'The job is cancelled.');
  await act(button('Send the rest and all failed'), 'The job goes on.');
  await confirm(page, 'Delete…', 'Delete the job', 'The job is deleted.');
  assert.ok(page.url().endsWith('/dashboard/jobs'));
});

test('a lease is released, and a semaphore created, changed and deleted', async () => {
  await page.goto(PAGES.semaphore);
  await live(page);
  await confirm(page.locator('#leases'), 'Release…', 'Release the lease', 'The lease is released.');
  await page.getByText('No leases').waitFor();
  await page.goto(PAGES.semaphores);
  await page.getByLabel('Name').fill('reports');
  await page.getByLabel('Permits', { exact: true }).fill('7');
  await act(page.getByRole('button', { name: 'Create' }), 'The semaphore is registered.');
  await page.getByText('0 of 7').waitFor();
  await page.getByLabel('Permits', { exact: true }).fill('9');
  await act(page.getByRole('button', { name: 'Set the limit' }), 'has the new limit');
  await page.getByText('0 of 9').waitFor();
  await confirm(page, 'Delete…', 'Delete the semaphore', 'The semaphore is deleted.');
  assert.equal(await page.getByRole('link', { name: 'reports' }).count(), 0);
});

test('the past is shown for an hour and for a day, and what was learned is reset', async () => {
  await page.goto(PAGES.overview);
  await page.getByRole('img', { name: /^Calls, last 1 h/ }).waitFor();
  await page.getByRole('link', { name: 'Last day' }).click();
  await page.getByRole('img', { name: /^Calls, last 1 d/ }).waitFor();
  await live(page);
  await page.getByRole('link', { name: 'All accounts' }).click();
  await confirm(page.locator('article.card').first(), 'Reset', 'Reset', 'is forgotten');
  await page.getByRole('link', { name: 'Overview' }).click();
  await page.getByRole('link', { name: 'All failures' }).click();
  await page.locator('#failures tbody tr').first().waitFor();
});

test('a chat, a structured output and a story are tried out', async () => {
  const tryOut = async (kind, edit = () => {}) => {
    await page.goto(`/dashboard/playground?kind=${kind}`);
    await edit();
    await page.getByRole('button', { name: 'Send' }).click();
    await page.locator('.chip', { hasText: 'answered' }).waitFor();
    await page.getByRole('list', { name: 'Timeline' }).waitFor();
    for (const colorScheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme });
      for (const viewport of [WIDE, NARROW]) {
        await page.setViewportSize(viewport);
        const what = `${kind} ${viewport.width} ${colorScheme}`;
        await fitsItsWidth(page, what);
        await check(page, what);
        await keep(`playground-${kind}-${viewport.width}-${colorScheme}`, 2400);
      }
    }
    await page.emulateMedia({ colorScheme: 'light' });
    await page.setViewportSize(WIDE);
  };
  await tryOut('chat', () => page.getByLabel('Prompt', { exact: true }).fill(
    'Hello [[simulate:status=503,fail_times=1]]',
  ));
  assert.equal(await page.locator('.timeline li', { hasText: 'Attempt 2' }).count(), 1);
  await tryOut('structured');
  assert.ok(JSON.parse(await page.locator('pre.answer').textContent()));
  await tryOut('story');
  await page.getByRole('heading', { name: /^Chapter 1/ }).waitFor();
  await page.locator('summary', { hasText: 'As JSON' }).click();
  assert.ok(JSON.parse(await page.locator('pre.answer').textContent()).scene_list.length > 0);
});

test('signing out ends the updates of every page', async () => {
  const other = await page.context().newPage();
  await other.goto(PAGES.overview);
  await live(other);
  await page.goto(PAGES.overview);
  await page.getByRole('button', { name: 'Sign out' }).click();
  await page.getByRole('heading', { level: 1, name: 'Sign in' }).waitFor();
  await other.getByRole('heading', { level: 1, name: 'Sign in' }).waitFor();
  assert.deepEqual(errors, []);
});
