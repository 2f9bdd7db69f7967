// Takes the pictures of docs/dashboard.md: of each page of the service at SERVICE_URL, wide and narrow,
// light and dark. The service should have been busy for an hour, with a job, semaphores and leases.

'use strict';

const fs = require('node:fs');
const path = require('node:path');

const { WIDE, NARROW, launch, open, signIn, live, picture } = require('./dashboard.cjs');

const { PICTURES = 'docs/images', SEMAPHORE } = process.env;

// The pages, each with the height of its pictures.
const PAGES = {
  overview: ['/dashboard', 1800],
  accounts: ['/dashboard/accounts', 1000],
  jobs: ['/dashboard/jobs', 700],
  job: ['', 900],
  semaphores: ['/dashboard/semaphores', 640],
  semaphore: [`/dashboard/semaphores/${SEMAPHORE}`, 900],
  replicas: ['/dashboard/replicas', 480],
  failures: ['/dashboard/failures', 700],
};

async function take(page, name, most) {
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
    for (const viewport of [WIDE, NARROW]) {
      // As high as the picture, so that what keeps its place on the screen does so in the picture.
      await page.setViewportSize({ ...viewport, height: most });
      const file = `dashboard-${name}-${viewport.width}-${colorScheme}.webp`;
      fs.writeFileSync(path.join(PICTURES, file), await picture(page, most));
    }
  }
  await page.setViewportSize(WIDE);
}

async function tryOut(page, kind, name, most) {
  await page.goto(`/dashboard/playground?kind=${kind}`);
  await page.getByRole('button', { name: 'Send' }).click();
  await page.locator('.chip', { hasText: 'answered' }).waitFor({ timeout: 120_000 });
  await take(page, name, most);
}

(async () => {
  fs.mkdirSync(PICTURES, { recursive: true });
  const browser = await launch();
  const { page, errors } = await open(browser);
  await page.goto('/dashboard/login');
  await take(page, 'login', 520);
  await signIn(page);
  await page.goto('/dashboard/jobs');
  PAGES.job[0] = await page.locator('tbody th a').first().getAttribute('href');
  for (const [name, [address, most]] of Object.entries(PAGES)) {
    await page.goto(address);
    await live(page);
    await take(page, name, most);
  }
  await tryOut(page, 'chat', 'playground', 1000);
  await tryOut(page, 'story', 'story', 1500);
  await browser.close();
  if (errors.length > 0) throw new Error(errors.join('\n'));
})();
